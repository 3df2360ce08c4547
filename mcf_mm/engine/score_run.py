"""A search by learnable scores in a training run: what its hook does when it is time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.runner import Runner

from mcf_mm.engine import in_run
from mcf_mm.engine.networks import averages, unwrapped
from mcf_mm.engine.pruning_run import STATE, PruningRun
from mcf_mm.engine.score_training import add_group, add_loss, remove_group, share_gradients
from mcf_mm.pruning import Gates, find_units
from mcf_mm.pruning.advice import warn_few_tokens
from mcf_mm.pruning.criteria import choose
from mcf_mm.pruning.scores import KINDS, Scores, fold_as, learnable, penalty, searched_sizes
from mcf_mm.pruning.structure import check_ratio, check_whole

#: Name of the penalty among the losses.
LOSS = 'loss_scores'


class ScoreRun(PruningRun):
    """A search in a training run. The arguments are those of :class:`mcf_mm.ScoreSearchHook`.

    Attributes:
        gates: The scores, while there are some.
    """

    def __init__(
        self,
        hook: str,
        ratio: float | Mapping[str, float],
        search_epochs: int,
        l1: float,
        kinds: Sequence[str],
        lr_mult: float,
        compensation: str,
        **arguments: Any,
    ):
        check_whole('search_epochs', search_epochs, 1)
        check_number('l1', l1, zero=True)
        check_number('lr_mult', lr_mult)
        self.ratio, self.l1, self.lr_mult = ratio, l1, lr_mult
        ratios = ratios_of(ratio, kinds)
        super().__init__(
            hook,
            Scores(),
            ratios,
            None,
            search_epochs,
            compensation=compensation,
            multiple=1,
            **arguments,
        )
        for name in ('criterion', 'ratios', 'sizes', 'epoch', 'multiple', 'budget', 'latency'):
            del self.settings[name]
        self.settings |= dict(
            ratio=ratio if not isinstance(ratio, Mapping) else ratios,
            search_epochs=search_epochs,
            l1=l1,
            kinds=list(kinds),
            lr_mult=lr_mult,
        )
        self.gates: Gates | None = None
        self._undo: list = []

    def start(self, runner: Runner) -> None:
        super().start(runner)  # before there are gates: it tries surgery on a copy of the model
        if self.is_small:
            return
        if self.gates is None:
            self.make_scores(runner)
        parameters = list(self.gates.values.values())
        self.gates.attach()
        handle = add_loss(unwrapped(runner), LOSS, lambda: self.l1 * penalty(self.gates))
        self._undo = [self.gates.remove, handle.remove]
        if runner.distributed:
            self._undo.append(share_gradients(runner.optim_wrapper, parameters))

    def make_scores(self, runner: Runner) -> None:
        """Make the scores, and let the optimizer train them."""
        units = find_units(unwrapped(runner))
        self.gates = learnable(units, self.ratios)
        weights = [weight for unit in units for weight in unit.module.parameters()]
        add_group(runner, list(self.gates.values.values()), weights, self.lr_mult)

    def check_epochs(self, runner: Runner) -> None:
        if self.cut_epoch >= runner.max_epochs:
            raise ValueError(
                f'search_epochs is {self.cut_epoch} and train_cfg.max_epochs {runner.max_epochs}: '
                'a search must be shorter than the run, for the epochs that remain recover'
            )
        super().check_epochs(runner)

    def cut(self, runner: Runner) -> None:
        """Fold the scores into the weights, choose by them, compensate, cut and heal."""
        for undo in self._undo:
            undo()
        parameters = list(self.gates.values.values())
        remove_group(runner, parameters)
        found = {key: score.detach().clone() for key, score in self.gates.values.items()}
        for network in averages(runner):
            fold_as(self.gates, find_units(network))
        self.gates.fold()
        self.gates, self._undo = None, []
        # Or the log would go on showing its last value.
        runner.message_hub.log_scalars.pop(f'train/{LOSS}', None)
        if self.keeper is not None:
            self.keeper.remember(runner)  # with the scores in its weights
        self.criterion.values = found
        self.policy = searched_sizes(self.units, found, self.ratios)
        batches = in_run.shown(runner, self.loader)
        seen = in_run.calibrate_run(runner, batches, self._for_compensation())
        warn_few_tokens(self.units, self.policy, seen)
        self.structure = choose(self.criterion, self.units, self.policy, seen)
        in_run.report(runner, 'search: the scores', score_figures(found))
        self._finish_cut(runner, seen)

    def state(self) -> dict:
        scores: dict[str, dict[str, torch.Tensor]] = {}
        for (name, kind), score in (self.gates.values if self.gates else {}).items():
            scores.setdefault(name, {})[kind] = score.detach().cpu()
        return {**super().state(), 'scores': scores}

    def resume(self, runner: Runner, checkpoint: dict) -> None:
        """Make the scores before the optimizer's state comes, which has their group."""
        super().resume(runner, checkpoint)
        if scores := checkpoint[STATE]['scores']:
            self.make_scores(runner)
            for (name, kind), score in self.gates.values.items():
                score.data.copy_(scores[name][kind])


def ratios_of(ratio: float | Mapping[str, float], kinds: Sequence[str]) -> dict[str, float]:
    """A ratio for each kind.

    Raises:
        ValueError: A kind is unknown, there is none, or a ratio is missing or out of range.
    """
    if isinstance(kinds, str) or not kinds or set(kinds) - set(KINDS):
        raise ValueError(f'kinds must be some of {list(KINDS)}, got {kinds!r}')
    if not isinstance(ratio, Mapping):
        ratio = dict.fromkeys(kinds, ratio)
        check_ratio('ratio', ratio[kinds[0]])
    elif set(ratio) != set(kinds):
        raise ValueError(
            f'ratio must name the kinds that are searched, {list(kinds)}, got {dict(ratio)}'
        )
    for kind, share in ratio.items():
        check_ratio(f'ratio of {kind}', share)
    return {kind: ratio[kind] for kind in kinds}


def check_number(argument: str, value: float, zero: bool = False) -> None:
    """Raise a ValueError unless ``value`` is a positive number, or 0 where that is allowed."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value if zero else 0 < value) or value == float('inf'):
        raise ValueError(
            f'{argument} must be a number of {"0 or more" if zero else "more than 0"}, '
            f'got {value!r}'
        )


def score_figures(found: Mapping[tuple[str, str], torch.Tensor]) -> dict[str, float]:
    """Mean and smallest size of the scores of each kind."""
    figures = {}
    for kind in dict.fromkeys(kind for _, kind in found):
        sizes = torch.cat([value.abs() for (_, own), value in found.items() if own == kind])
        figures |= {f'score_{kind}_mean': float(sizes.mean())}
        figures |= {f'score_{kind}_min': float(sizes.min())}
    return figures
