"""What a user should hear of before the network is cut: one line for each matter."""

import warnings
from collections.abc import Container, Iterable, Iterator, Mapping

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.compensation import loses
from mcf_mm.pruning.moments import MomentObserver
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Units


def asked_kinds(ratios: float | Mapping | None) -> set[str]:
    """Kinds that ratios for the whole network name; of ratios by unit none."""
    if not isinstance(ratios, Mapping):
        return set()
    return {kind for kind, ratio in ratios.items() if not isinstance(ratio, Mapping)}


def warn_left_alone(units: Units, kinds: Iterable[str]) -> None:
    """Warn of what stays as it is though its kind is to be pruned.

    These are modules that look like a unit and cannot be pruned, and kinds that a unit lacks, such
    as ``qk`` where query and key are normalised.

    Args:
        units: Units of a network.
        kinds: Kinds that a budget or ratios ask for.
    """
    kinds = list(kinds)
    by_reason: dict[str, list[str]] = {}
    for unit in units:
        for kind, reason in unit.missing.items():
            if kind in kinds:
                by_reason.setdefault(reason, []).append(f'{kind} of {unit.name}')
    for name, reason in units.left_out.items():
        by_reason.setdefault(reason, []).append(name)
    if by_reason:
        told = [
            names[0] + (f' and {len(names) - 1} more' if len(names) > 1 else '') + f' ({reason})'
            for reason, names in by_reason.items()
        ]
        warnings.warn(f'left as they are: {"; ".join(told)}', stacklevel=3)


def warn_few_tokens(units: Iterable[Unit], kinds: Mapping[str, Container[str]], seen: Seen) -> None:
    """Warn if a layer reads more inputs than tokens were seen of it.

    Its second moments have no full rank then: n tokens tell nothing of more than n directions. Of
    ``qk`` and ``v`` the bases are of single heads, which are small, and the layer that reads ``v``
    is looked at here. The sequential solves draw to the weights that a layer has, so what was not
    seen stays as it is.

    Args:
        units: Units of a network.
        kinds: Kinds that are to be pruned, by unit.
        seen: What solves start from.
    """
    few = [
        (tokens / size, name, tokens, size)
        for name, tokens, size in _solves(units, kinds, seen)
        if tokens < size
    ]
    if not few:
        return
    _, name, tokens, size = min(few)
    images = f'{tokens:,} tokens'
    advice = 'calibrate on more images'
    if seen.images:
        images += f' of {seen.images:,} images'
        advice += f', {-(-size * seen.images // tokens):,} or more'
    more = f'; {len(few) - 1} more layers have too few as well' if len(few) > 1 else ''
    warnings.warn(
        f'few calibration images: the moments of {name} have a rank of at most {tokens:,} of '
        f'{size:,}, from {images}{more}. A ridge term keeps the solves well-posed, but {advice}',
        stacklevel=3,
    )


def _solves(
    units: Iterable[Unit], kinds: Mapping[str, Container[str]], seen: Seen
) -> Iterator[tuple[str, int, int]]:
    """Name, tokens seen and size of the moments, of each layer that is solved anew."""
    for unit in units:
        for place, linear in unit.consumers():
            if not loses(place, kinds.get(unit.name, ())):
                continue
            tokens = None
            if seen.has(MomentObserver, unit, place):
                tokens = seen.moments(unit, place).tokens
            elif (unit, place) in seen:
                tokens = seen[unit, place].samples
            if tokens is not None:
                paths = {id(part): path for path, part in unit.module.named_modules()}
                yield f'{unit.name}.{paths[id(linear)]}', tokens, linear.in_features + 1
