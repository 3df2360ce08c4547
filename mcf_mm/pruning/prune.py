"""The whole of pruning without training: find, calibrate, choose, compensate, cut."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mcf_mm.pruning.advice import asked_kinds, warn_few_tokens, warn_left_alone
from mcf_mm.pruning.budget import Budget, check_reachable, parse_budget
from mcf_mm.pruning.calibration import Seen, calibrate
from mcf_mm.pruning.compensation import (
    check_biases,
    check_compensation,
    compensate,
    compensation_observers,
)
from mcf_mm.pruning.costs import Costs, measure_costs
from mcf_mm.pruning.criteria import Criterion, ScoreFunction, build_criterion, choose
from mcf_mm.pruning.curves import Curves
from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.measure import Kept, Probe
from mcf_mm.pruning.observers import CalibrationError
from mcf_mm.pruning.policy import (
    check_sizes,
    read_policy,
    uniform,
    why_missing,
    without_tokens,
)
from mcf_mm.pruning.sequential import check_batches, solve_sequentially
from mcf_mm.pruning.structure import Sizes, Structure
from mcf_mm.pruning.surgery import cut
from mcf_mm.pruning.swap import copies
from mcf_mm.pruning.units import Units

Ratios = float | Mapping[str, float] | Mapping[str, Mapping[str, float]]


def prune(
    model: nn.Module,
    batches: Iterable[Any] = (),
    criterion: str | dict | Criterion | ScoreFunction | None = None,
    ratios: Ratios | None = None,
    sizes: Sizes | str | Path | None = None,
    compensation: str | None = None,
    multiple: int = 1,
    forward: Callable[[Any], Any] | None = None,
    image_names: Callable[[Any], Sequence[str]] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    budget: Budget | None = None,
    kinds: Iterable[str] | None = None,
    curves: Curves | None = None,
    costs: Costs | None = None,
    seen: Seen | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Structure:
    """Prune a network in place, without training.

    Args:
        model: A network with units that :func:`~mcf_mm.pruning.find.find_units` finds.
        batches: Calibration images, see :func:`~mcf_mm.pruning.calibration.calibrate`; the MCF
            paper takes 1,024.
        criterion: ``'mcf'`` (inputs and hidden units), ``'obs'`` (the closed form),
            ``'magnitude'``, ``'activation'``, ``'fisher'`` or ``'random'`` (any kind), ``'hsic'``
            (heads and hidden units of classifiers), ``dict(type=..., ...)``, a function
            ``(unit, kind, seen) -> scores``, or a
            :class:`~mcf_mm.pruning.criteria.Criterion`. Defaults to ``'obs'`` with a ``budget``
            and to ``'mcf'`` without.
        ratios: Share to drop: one number for inputs and hidden units, ``{kind: ratio}`` or
            ``{unit: {kind: ratio}}``; of ``qk`` and ``v`` of the channels of each head. Defaults
            to 0.4 where there are neither ``sizes`` nor a ``budget``.
        sizes: How many are kept, instead of ratios: ``{unit: {kind: n}}`` or a JSON file of it.
        compensation: See :func:`~mcf_mm.pruning.compensation.compensate`. Defaults to that of the
            criterion: ``'least_squares'`` of ``'obs'``, ``'none'`` of the others.
        multiple: Sizes become multiples of this, see
            :func:`~mcf_mm.pruning.structure.kept_size`. Defaults to 1.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        image_names: Names of the images of a batch, for error messages. Defaults to numbers.
        loss: For criteria with gradients, see :func:`~mcf_mm.pruning.calibration.calibrate`.
        budget: What the network may cost, instead of ratios or sizes: ``'macs=60%'``,
            ``'params=3869416'``, see :func:`~mcf_mm.pruning.budget.parse_budget`. With ``'obs'``
            each unit gets the sizes that lose least (:func:`~mcf_mm.pruning.curves.best_sizes`);
            with other criteria all drop the same share.
        kinds: What a budget may prune. Defaults to all kinds that the network has with
            ``'obs'``, and to inputs and hidden units with the others.
        curves: Cost curves of an earlier run, so that they need not be computed again.
        costs: Costs of the network, see :func:`~mcf_mm.pruning.costs.measure_costs`. Defaults to
            what the first image of the first batch costs.
        seen: What an earlier calibration of this network found, instead of ``batches``.
        progress: Called with what is being done, how much of it is done and how much there is,
            while cost curves are computed, cuts measured and layers solved anew.

    Returns:
        What was kept.

    Raises:
        ValueError: No unit can be pruned, one is pruned already, weights are NaN or infinite
            or shared by layers, or an argument is out of range; no sizes meet the budget.

    Example:
        >>> model = timm.create_model('deit_small_patch16_224', pretrained=True)
        >>> structure = prune(model, batches, budget='macs=60%')
        >>> structure = prune(model, batches, 'mcf', ratios=dict(inputs=0.4, hidden=0.4))
        >>> structure.sizes['blocks.0.mlp']
        {'inputs': 230, 'hidden': 921}
    """
    if criterion is None:
        criterion = 'mcf' if budget is None else 'obs'
    criterion = build_criterion(criterion)
    compensation = criterion.compensation if compensation is None else compensation
    check_compensation(compensation)
    if compensation == 'sequential':
        check_batches(batches, given=seen is not None)
    units = require_units(model)
    check_parameters(model)
    bound: tuple[Budget, Costs] | None = None
    if budget is None:
        policy = resolve_policy(units, ratios, sizes, multiple)
    else:
        if ratios is not None or sizes is not None:
            raise ValueError('give one of budget, ratios and sizes')
        kinds = None if kinds is None else set(kinds)
        batches, costs = known_costs(model, batches, forward, costs)
        policy = open_policy(units, costs, budget, kinds, criterion, multiple)
        bound = budget, costs
    check_criterion(criterion, policy, compensation)
    if budget is not None:
        warn_left_alone(units, kinds or criterion.budget_kinds)
    elif asked := asked_kinds(ratios) & {'heads', 'qk', 'v'}:
        warn_left_alone(units, asked)
    check_biases(units, policy, compensation)
    check_tied(model, policy)
    criterion.prepare(model)
    observers = criterion.observers(units, without_tokens(policy))
    observers += compensation_observers(units, policy, compensation, observers)
    passing = Kept(batches)
    if seen is None:
        seen = Seen({})
        if observers:
            labels = criterion.labels
            seen = calibrate(
                model, passing, observers, forward, image_names, loss=loss, labels=labels
            )
    warn_few_tokens(units, policy, seen)
    if bound is not None:
        budget, costs = bound
        if curves is None and not passing.first:
            passing.keep()  # what was seen comes from an earlier calibration
        probe = Probe(model, passing.first, forward, compensation, progress)
        policy = criterion.plan(units, policy, seen, costs, budget, curves, probe)
    seen = criterion.turn(units, without_tokens(policy), seen)
    structure = choose(criterion, units, policy, seen)
    dense = copies(model, structure) if compensation == 'sequential' else {}
    compensate(units, structure, seen, compensation)
    cut(model, structure)
    if dense:
        told = partial(progress, 'solving layers') if progress else None
        solve_sequentially(model, dense, batches, structure, forward, told)
    return structure


def resolve_policy(
    units: Units, ratios: Ratios | None, sizes: Sizes | str | Path | None, multiple: int = 1
) -> dict[str, dict[str, int]]:
    """Sizes from ratios, from a mapping or from a file.

    Raises:
        ValueError: Both are given, they do not fit the network, prune nothing, or prune what is
            pruned already.
    """
    if sizes is not None and ratios is not None:
        raise ValueError('give either ratios or sizes, not both')
    if sizes is not None:
        source = 'sizes' if isinstance(sizes, Mapping) else str(sizes)
        sizes = sizes if isinstance(sizes, Mapping) else read_policy(sizes)
        check_sizes(units, sizes, source)
        policy = {name: dict(kinds) for name, kinds in sizes.items()}
    else:
        policy = uniform(units, 0.4 if ratios is None else ratios, multiple)
    if not policy:
        raise ValueError(f'ratios={ratios} and sizes={sizes} prune nothing of this network')
    for unit in units.every:
        if unit.name in policy and unit.is_pruned:
            raise ValueError(
                f'{unit.name} is pruned already, to {unit.sizes}: start from the dense network'
            )
    return policy


def known_costs(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None,
    costs: Costs | None,
) -> tuple[Iterable[Any], Costs]:
    """Costs of a network for the first image, and the batches with that image.

    Raises:
        ValueError: There are no batches, or one cannot be split into images.
    """
    if costs is not None:
        return batches, costs
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise CalibrationError('calibration: there are no images (batches is empty)')
    if not isinstance(first, Tensor):
        raise ValueError(
            f'a budget needs the costs of one image: give costs=measure_costs(...), the batches '
            f'are {type(first).__name__} and not tensors'
        )
    run = model if forward is None else forward
    # An iterator is used up; what can be started anew is.
    rest = batches if iterator is not batches else chain([first], iterator)
    return rest, measure_costs(model, lambda _: run(first[:1]))


def open_policy(
    units: Units,
    costs: Costs,
    budget: Budget,
    kinds: Iterable[str] | None,
    criterion: Criterion,
    multiple: int = 1,
) -> dict[str, dict[str, int]]:
    """All kinds that a budget may prune, with the sizes that they have.

    Raises:
        ValueError: A kind is unknown, or pruning them all cannot meet the budget.
    """
    if multiple != 1:
        raise ValueError(f'a budget is met to the last element: multiple must be 1, got {multiple}')
    known = {kind for unit in units.every for kind in unit.kinds}
    kinds = criterion.budget_kinds & known if kinds is None else set(kinds)
    if unknown := kinds - known:
        raise ValueError(
            f'kinds names {sorted(unknown)}, the network has {sorted(known)}'
            f'{why_missing(units, unknown)}'
        )
    criterion.check_budget(kinds)
    full = {
        unit.name: {kind: unit.sizes[kind] for kind in unit.kinds if kind in kinds}
        for unit in units.every
    }
    full = {name: own for name, own in full.items() if own}
    what, wanted = parse_budget(budget, costs)
    if costs.of({})[what] <= wanted:
        raise ValueError(
            f'the network meets the budget {budget} as it is: {costs.of({})[what]:,} {what}'
        )
    check_reachable(units, costs, (what, wanted), full, criterion.floors)
    for unit in units.every:
        if unit.name in full and unit.is_pruned:
            raise ValueError(
                f'{unit.name} is pruned already, to {unit.sizes}: start from the dense network'
            )
    return full


def check_criterion(criterion: Criterion, policy: Sizes, compensation: str = 'none') -> None:
    """Check that a criterion can score what a policy prunes, and that layers can be solved.

    Raises:
        ValueError: It cannot; or tokens are dropped and layers solved one after the other.
    """
    asked = {kind for kinds in policy.values() for kind in kinds}
    if 'tokens' in asked and compensation == 'sequential':
        raise ValueError(
            "compensation='sequential' compares each token with the dense network's and cannot "
            "drop tokens: take 'least_squares', or leave tokens out"
        )
    asked -= {'tokens'}  # each image chooses its own
    if criterion.kinds is not None:
        if unknown := asked - set(criterion.kinds):
            raise ValueError(
                f'{type(criterion).__name__} scores {list(criterion.kinds)} and no '
                f"{sorted(unknown)}: take another criterion, such as 'fisher' or 'activation'"
            )


def check_parameters(model: nn.Module) -> None:
    """Check that no weight of a network is NaN or infinite, those outside its units too.

    Raises:
        ValueError: One is; calibration would not see all of them.
    """
    broken = [
        name
        for name, value in model.named_parameters()
        if not value.is_meta and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f'{len(broken)} of the weights of {type(model).__name__} are NaN or infinite, the '
            f'first {broken[0]}: take an earlier checkpoint, or train again with a lower '
            'learning rate'
        )


def check_tied(model: nn.Module, policy: Sizes) -> None:
    """Check that what is to be pruned has its weights for itself.

    Raises:
        ValueError: A weight is that of another layer too, which would be cut along.
    """
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    for unit in policy:
        for tied in names.values():
            if len(tied) > 1 and any(name.startswith(f'{unit}.') for name in tied):
                raise ValueError(
                    f'{unit} cannot be pruned: {tied[0]} and {tied[1]} are one weight, which both '
                    'layers need as it is. Leave these units out with ratios or sizes by unit, or '
                    'untie them'
                )


def require_units(model: nn.Module) -> Units:
    """The units of ``model``.

    Raises:
        ValueError: There is none; the message says what was left out and why.
    """
    units = find_units(model)
    if units:
        return units
    told = ''.join(f'; {name}: {reason}' for name, reason in list(units.left_out.items())[:3])
    raise ValueError(
        f'no FFN found in {type(model).__name__}, and no attention that could be pruned: expected '
        f'modules such as the FFN of mmcv or the Mlp of timm, with two linear layers{told}'
    )
