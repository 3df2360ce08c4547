"""The whole of pruning without training: find, calibrate, choose, compensate, cut."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mcf_mm.pruning.calibration import Seen, calibrate
from mcf_mm.pruning.compensation import (
    check_biases,
    check_compensation,
    compensate,
    compensation_observers,
)
from mcf_mm.pruning.criteria import Criterion, ScoreFunction, build_criterion
from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.policy import check_sizes, read_policy, uniform
from mcf_mm.pruning.structure import Sizes, Structure
from mcf_mm.pruning.surgery import cut
from mcf_mm.pruning.units import Units

Ratios = float | Mapping[str, float] | Mapping[str, Mapping[str, float]]


def prune(
    model: nn.Module,
    batches: Iterable[Any] = (),
    criterion: str | dict | Criterion | ScoreFunction = 'mcf',
    ratios: Ratios | None = None,
    sizes: Sizes | str | Path | None = None,
    compensation: str = 'none',
    multiple: int = 1,
    forward: Callable[[Any], Any] | None = None,
    image_names: Callable[[Any], Sequence[str]] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
) -> Structure:
    """Prune a network in place, without training.

    Args:
        model: A network with units that :func:`~mcf_mm.pruning.find.find_units` finds.
        batches: Calibration images, see :func:`~mcf_mm.pruning.calibration.calibrate`; the MCF
            paper takes 1,024.
        criterion: ``'mcf'`` (inputs and hidden units), ``'magnitude'``, ``'activation'``,
            ``'fisher'`` or ``'random'`` (any kind), ``dict(type=..., ...)``, a function
            ``(unit, kind, seen) -> scores``, or a :class:`~mcf_mm.pruning.criteria.Criterion`.
            Defaults to ``'mcf'``.
        ratios: Share to drop: one number for inputs and hidden units, ``{kind: ratio}`` or
            ``{unit: {kind: ratio}}``; of ``qk`` and ``v`` of the channels of each head. Defaults
            to 0.4 where there are no ``sizes``.
        sizes: How many are kept, instead of ratios: ``{unit: {kind: n}}`` or a JSON file of it.
        compensation: See :func:`~mcf_mm.pruning.compensation.compensate`. Defaults to ``'none'``.
        multiple: Sizes become multiples of this, see
            :func:`~mcf_mm.pruning.structure.kept_size`. Defaults to 1.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        image_names: Names of the images of a batch, for error messages. Defaults to numbers.
        loss: For criteria with gradients, see :func:`~mcf_mm.pruning.calibration.calibrate`.

    Returns:
        What was kept.

    Raises:
        ValueError: No unit can be pruned, one is pruned already, weights are NaN or infinite
            or shared by layers, or an argument is out of range.

    Example:
        >>> model = timm.create_model('deit_small_patch16_224', pretrained=True)
        >>> structure = prune(model, batches, ratios=dict(inputs=0.4, hidden=0.4))
        >>> structure.sizes['blocks.0.mlp']
        {'inputs': 230, 'hidden': 921}
    """
    check_compensation(compensation)
    criterion = build_criterion(criterion)
    units = require_units(model)
    policy = resolve_policy(units, ratios, sizes, multiple)
    check_criterion(criterion, policy)
    check_biases(units, policy, compensation)
    check_parameters(model)
    check_tied(model, policy)
    criterion.prepare(model)
    chosen = [unit for unit in units if unit.name in policy]
    observers = criterion.observers(units, policy) + compensation_observers(chosen, compensation)
    seen = Seen({})
    if observers:
        seen = calibrate(model, batches, observers, forward, image_names, loss=loss)
    structure = criterion.select(units, policy, seen)
    compensate(units, structure, seen, compensation)
    cut(model, structure)
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
    for unit in units:
        if unit.name in policy and unit.is_pruned:
            raise ValueError(
                f'{unit.name} is pruned already, to {unit.sizes}: start from the dense network'
            )
    return policy


def check_criterion(criterion: Criterion, policy: Sizes) -> None:
    """Check that a criterion can score what a policy prunes.

    Raises:
        ValueError: It cannot.
    """
    if criterion.kinds is not None:
        asked = {kind for kinds in policy.values() for kind in kinds}
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
