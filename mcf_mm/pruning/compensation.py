"""Folds what the dropped elements carried into the weights that stay (ours, beyond the paper)."""

from collections.abc import Container, Iterable, Sequence

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.moments import MomentObserver, Moments
from mcf_mm.pruning.observers import ActivationObserver, Activations, Observer
from mcf_mm.pruning.solves import augmented, solve_kept
from mcf_mm.pruning.structure import Sizes, Structure
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Attention

COMPENSATIONS = ('none', 'mean', 'least_squares', 'sequential')
#: Those that begin with least squares.
SOLVED = ('least_squares', 'sequential')
#: Ridge term, as a share of the mean variance of the kept elements.
RIDGE = 1e-3


def compensation_observers(
    units: Iterable[Unit], sizes: Sizes, kind: str, gathered: Sequence[Observer] = ()
) -> list[Observer]:
    """What calibration is to gather for :func:`compensate`.

    Args:
        units: Units of the network.
        sizes: Which kinds are to be pruned. A layer that reads none of them needs nothing.
        kind: Of compensation.
        gathered: What the criterion gathers. Layers of which it has moments need no more.
    """
    if kind == 'none':
        return []
    known = {
        (observer.unit.name, observer.key[-1])
        for observer in gathered
        if isinstance(observer, MomentObserver)
    }
    return [
        ActivationObserver(unit, place, covariance=kind in SOLVED)
        for unit in units
        for place, _ in unit.consumers()
        if loses(place, sizes.get(unit.name, ())) and (unit.name, place) not in known
    ]


def loses(place: str, kinds: Container[str]) -> bool:
    """Whether a layer that reads ``place`` loses inputs when these kinds are pruned."""
    return place in kinds or (place == 'v' and 'heads' in kinds)


def compensate(units: Iterable[Unit], structure: Structure, seen: Seen, kind: str = 'none') -> None:
    """Change weights and biases in place, before surgery drops what is not kept.

    ``'mean'`` replaces each dropped element by its mean. ``'least_squares'`` predicts the dropped
    elements from the kept ones by ridge regression, in closed form from the covariances, or from
    the moments that the criterion has gathered (:class:`~mcf_mm.pruning.criteria.OBS`: the result
    is that of its own updates). Dropped q/k channels cannot be made up for in this way: they are
    read by each other.

    Args:
        units: Units of the network, not yet cut; perhaps of another one (an average).
        structure: What will be kept.
        seen: Statistics of the dense network; with covariances for ``'least_squares'``.
        kind: ``'none'`` (the paper), ``'mean'``, ``'least_squares'``, or ``'sequential'``, which
            is ``'least_squares'`` here and goes on after the cut, see
            :func:`~mcf_mm.pruning.sequential.solve_sequentially`. Defaults to ``'none'``.

    Raises:
        ValueError: ``kind`` is none of these, a layer has no bias to fold into, or the result is
            not finite. Nothing is changed then.
    """
    check_compensation(kind)
    if kind == 'none':
        return
    units = [unit for unit in units if unit.name in structure]
    structure = Structure({unit.name: unit.complete(structure[unit.name]) for unit in units})
    check_biases(units, structure.sizes, kind)
    folded = []
    for unit in units:
        for place, linear in unit.consumers():
            kept = _read(unit, place, structure)
            if kept is None or len(kept) == linear.in_features:
                continue  # all of them
            moments = None
            if seen.has(MomentObserver, unit, place):
                moments = seen.moments(unit, place)
            if kind in SOLVED and moments is not None:
                new = _solve(linear, kept, moments, unit.name)
            else:
                # What the criterion has gathered is in the basis that it has turned to.
                known = seen[unit, place] if moments is None else moments
                new = _fold(linear, kept, known, kind, unit.name)
            folded.append((linear, *new))
    for linear, weight, bias in folded:
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias)


def check_compensation(kind: str) -> None:
    """Raise a ValueError unless ``kind`` is one of ``COMPENSATIONS``."""
    if kind not in COMPENSATIONS:
        raise ValueError(f'compensation must be one of {COMPENSATIONS}, got {kind!r}')


def check_biases(units: Iterable[Unit], sizes: Sizes, kind: str) -> None:
    """Check that layers which lose inputs have a bias to fold into.

    Args:
        units: Units of the network.
        sizes: How many elements are kept.
        kind: Of compensation.

    Raises:
        ValueError: One has none.
    """
    if kind == 'none':
        return
    for unit in units:
        lost = {k for k, size in sizes.get(unit.name, {}).items() if size < unit.sizes[k]}
        for place, linear in unit.consumers():
            # 'sequential' solves all layers of the unit anew.
            solved = loses(place, lost) or (kind == 'sequential' and unit.name in sizes)
            if solved and linear.bias is None:
                raise ValueError(
                    f"{unit.name} has a layer without bias: use compensation='none', got {kind!r}"
                )


def _read(unit: Unit, place: str, structure: Structure) -> Tensor | None:
    """Which elements at ``place`` are still read; None when all are."""
    kept = structure[unit.name]
    if not isinstance(unit, Attention):
        return kept.get(place)
    channels = unit.sizes['v']
    heads = kept['heads']
    of_heads = (heads[:, None] * channels + torch.arange(channels).to(heads)).flatten()
    return kept.get('v', of_heads)


@torch.no_grad()
def _fold(
    linear: nn.Linear, kept: Tensor, activations: Activations | Moments, kind: str, name: str
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that make up for what is not kept."""
    weight = linear.weight.data.double()
    kept = kept.to(weight.device)
    dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    dropped[kept] = False
    dropped = dropped.nonzero().squeeze(1)
    if len(dropped) == 0:
        return linear.weight.data, None
    mean = activations.mean.double()
    constant = mean[dropped]
    new_weight = linear.weight.data.clone()
    if kind in SOLVED:
        covariance = activations.covariance
        if covariance is None:
            raise ValueError(f'compensation={kind!r} needs the covariance of {name}')
        own = covariance[kept][:, kept]
        own.diagonal().add_(RIDGE * own.diagonal().mean() + 1e-12)
        # dropped ~ mean + slope^T (kept - mean)
        slope = torch.linalg.solve(own, covariance[kept][:, dropped])
        new_weight[:, kept] += (weight[:, dropped] @ slope.T).to(new_weight)
        constant = constant - slope.T @ mean[kept]
    new_bias = linear.bias.data + (weight[:, dropped] @ constant).to(linear.bias)
    if not (new_weight.isfinite().all() and new_bias.isfinite().all()):
        raise ValueError(f'compensation={kind!r} gave weights of {name} that are not finite')
    return new_weight, new_bias


@torch.no_grad()
def _solve(
    linear: nn.Linear, kept: Tensor, moments: Moments, name: str
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that come closest to the layer with all its inputs."""
    if len(kept) == linear.weight.shape[1]:
        return linear.weight.data, None
    kept = kept.to(linear.weight.device)
    solved = solve_kept(augmented(linear), moments.second, kept, moments.ridge)
    if not solved.isfinite().all():
        raise ValueError(f"compensation='least_squares' gave weights of {name} that are not finite")
    weight = linear.weight.data.clone()
    weight[:, kept] = solved[:, :-1].to(weight)
    return weight, solved[:, -1].to(linear.bias)
