"""What is compared: the methods by name, and why a network or a budget cannot have one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mcf_mm.comparison import peers
from mcf_mm.comparison.bench import variance
from mcf_mm.pruning import Costs, build_criterion, find_units
from mcf_mm.pruning.budget import budget_kind, parse_budget
from mcf_mm.pruning.policy import why_missing
from mcf_mm.pruning.prune import open_policy
from mcf_mm.search.shape import Shape
from mcf_mm.search.storage import import_optuna

LS = 'least_squares'
#: Kinds of the closed form; tokens must be asked for.
CLOSED = ('hidden', 'v', 'qk', 'heads', 'inputs')
#: Kinds that the search by scores cuts.
SCORED = ('qk', 'v', 'hidden')


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        how: ``'dense'``; ``'prune'`` by :func:`mcf_mm.prune` to the budget; ``'uniform'``, each
            unit dropping the same share of its cap (:class:`mcf_mm.search.shape.Shape`);
            ``'search'``; ``'peer'``, torch-pruning; ``'scores'``, a training
            (:class:`mcf_mm.ScoreSearchHook`).
        arguments: Of :func:`mcf_mm.prune`, or of torch-pruning.
    """

    how: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str] | None:
        """What it prunes, where it says so."""
        kinds = self.arguments.get('kinds')
        return None if kinds is None else list(kinds)


def hidden_alone() -> dict[str, dict[str, Any]]:
    """Arguments of :func:`mcf_mm.prune` beside the budget, of methods on hidden units alone."""
    rows = {'hidden alone, VBP, mean': dict(criterion=variance, compensation='mean')}
    for name in ('random', 'magnitude', 'activation', 'fisher'):
        rows[f'hidden alone, {name}'] = dict(criterion=name, compensation=LS)
    rows['hidden alone, VBP'] = dict(criterion=variance, compensation=LS)
    rows['hidden alone, FIS'] = dict(criterion='mcf', compensation=LS)
    return {name: own | dict(kinds=['hidden']) for name, own in rows.items()}


def methods() -> dict[str, Row]:
    """All rows by name. Rules of others are applied to this network, not their code, but for
    torch-pruning: VBP is variance with the mean folded, GRAIL ridge after any selection, which all
    rows of hidden units with least squares are.
    """
    rows = {'dense': Row('dense')}
    for kind in ('none', 'mean', LS, 'sequential'):
        rows[f'MCF, {kind}'] = Row(
            'prune', dict(criterion='mcf', compensation=kind, kinds=['inputs', 'hidden'])
        )
    names = {
        'hidden alone, VBP, mean': 'hidden alone, VBP rule (variance, mean)',
        'hidden alone, VBP': 'hidden alone, variance',
        'hidden alone, magnitude': 'hidden alone, GRAIL rule (magnitude, ridge)',
    }
    for name, arguments in hidden_alone().items():
        rows[names.get(name, name)] = Row('prune', arguments)
    rows['hidden alone, OBS'] = Row('prune', dict(criterion='obs', kinds=['hidden']))
    for allocation in ('predicted', 'measured'):
        criterion = dict(type='obs', allocation=allocation)
        rows[f'closed form, {allocation}'] = Row('prune', dict(criterion=criterion, kinds=CLOSED))
    rows['closed form with tokens'] = Row('prune', dict(criterion='obs', kinds=(*CLOSED, 'tokens')))
    rows['HSIC, uniform'] = Row('uniform', dict(criterion='hsic', compensation='none'))
    rows['searched policy, OBS'] = Row('search', dict(criterion='obs', compensation=LS))
    rows['SiDT, searched while training'] = Row('scores', dict(kinds=SCORED))
    for everything in (False, True):
        for name in peers.IMPORTANCES:
            where = 'everything' if everything else 'FFN'
            rows[f'torch-pruning, {where}, {name}'] = Row(
                'peer', dict(importance=name, everything=everything)
            )
    return rows


def check_budget(budget: str, costs: Costs) -> None:
    """Check that a budget is one that all methods can be held to.

    Raises:
        ValueError: It is none, is of latency, or the dense network meets it.
    """
    if budget_kind(budget) == 'latency':
        raise ValueError(f'--budget must be of params or macs, which all methods meet: {budget!r}')
    what, wanted = parse_budget(budget, costs)
    if costs.of({})[what] <= wanted:
        raise ValueError(
            f'the network meets the budget {budget} as it is: {costs.of({})[what]:,} {what}'
        )


def why_not(
    row: Row, model: nn.Module, costs: Costs, budget: str, epochs: int | None, trials: int | None
) -> str | None:
    """Why a row is left out of a comparison; None where it can be had.

    Args:
        row: The row.
        model: The dense network.
        costs: Its costs.
        budget: The budget.
        epochs: Epochs of training, if any.
        trials: Trials of a search, if any.
    """
    units = find_units(model)
    try:
        if row.how == 'prune':
            criterion = build_criterion(row.arguments['criterion'])
            open_policy(units, costs, budget, row.kinds, criterion)
        elif row.how == 'uniform':
            Shape(units, costs, budget)
            build_criterion(row.arguments['criterion']).prepare(model)
            check_scored(row, units)
        elif row.how == 'search':
            if trials is None:
                return 'a search was not asked for (--search TRIALS)'
            import_optuna()
            Shape(units, costs, budget, searched_kinds(units))
        elif row.how == 'scores':
            if epochs is None or epochs < 2:
                return (
                    'SiDT searches while it trains: it needs --epochs 2 or more, and there is '
                    f'{epochs or "no training"}'
                )
            known = {kind for unit in units.every for kind in unit.kinds}
            if missing := set(SCORED) - known:
                return f'the network has no {sorted(missing)}{why_missing(units, missing)}'
            open_policy(units, costs, budget, SCORED, build_criterion('magnitude'))
        elif row.how == 'peer':
            return _why_no_peer(row, model, costs, budget)
    except (ValueError, ImportError) as error:
        return str(error)
    return None


def check_scored(row: Row, units: Any) -> None:
    """Check that a row's criterion scores the kinds of the paper that the network has."""
    known = {kind for unit in units.every for kind in unit.kinds}
    if missing := {'heads', 'hidden'} - known:
        raise ValueError(f'the network has no {sorted(missing)}{why_missing(units, missing)}')


def searched_kinds(units: Any) -> list[str]:
    """Kinds that a search goes over: all but FFN inputs, which are the dearest."""
    known = {kind for unit in units.every for kind in unit.kinds}
    return [kind for kind in ('heads', 'hidden', 'qk', 'v', 'tokens') if kind in known]


def _why_no_peer(row: Row, model: nn.Module, costs: Costs, budget: str) -> str | None:
    if not peers.is_installed():
        return peers.ADVICE
    if row.arguments['everything']:
        return peers.why_not_everything(model)
    open_policy(find_units(model), costs, budget, ['hidden'], build_criterion('magnitude'))
    return None


def why_not_healed(row: Row) -> str | None:
    """Why a row is not healed; None where it is."""
    if row.how == 'dense':
        return 'it is what the others are drawn to'
    if row.how == 'scores':
        return 'its training is all it has'
    if row.how == 'peer' and row.arguments['everything']:
        return 'healing compares outputs of blocks, which have another width'
    return None
