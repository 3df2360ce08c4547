"""Policies: how many elements of each kind each unit keeps."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcf_mm.pruning.structure import Sizes, kept_size
from mcf_mm.pruning.token_units import Tokens, token_flow
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Units

#: Fewest elements that a policy leaves: of v and q/k in each head.
FLOORS = {'inputs': 1, 'hidden': 1, 'heads': 1, 'qk': 1, 'v': 1, 'tokens': 1}


def uniform(
    units: Units,
    ratios: float | Mapping[str, float] | Mapping[str, Mapping[str, float]],
    multiple: int = 1,
    kinds: Iterable[str] = ('inputs', 'hidden'),
) -> dict[str, dict[str, int]]:
    """Drop a share of each unit.

    Args:
        units: Units of a network.
        ratios: Share to drop, in [0, 1): one for all of ``kinds``, ``{kind: ratio}``, or
            ``{unit: {kind: ratio}}``. Kinds that are not named stay as they are. Of ``qk`` and
            ``v`` it is the share of the channels of each head, of ``tokens`` of those that arrive.
        multiple: See :func:`~mcf_mm.pruning.structure.kept_size`. Defaults to 1.
        kinds: Which kinds one ratio is for. Defaults to inputs and hidden units, as in MCF.

    Raises:
        ValueError: A ratio is out of range, a unit or a kind is unknown.
    """
    if not isinstance(ratios, Mapping):
        ratios = dict.fromkeys(kinds, ratios)
    by_unit = {name: own for name, own in ratios.items() if isinstance(own, Mapping)}
    of_all = {kind: ratio for kind, ratio in ratios.items() if not isinstance(ratio, Mapping)}
    if by_unit and of_all:
        raise ValueError(
            f'ratios must be {{kind: ratio}} or {{unit: {{kind: ratio}}}}, got {ratios}'
        )
    known = {kind for unit in units.every for kind in unit.kinds}
    if by_unit:
        check_names(units, by_unit, 'ratios')
    elif unknown := set(of_all) - known:
        raise ValueError(
            f'ratios names {sorted(unknown)}, the network has {sorted(known)}'
            f'{why_missing(units, unknown)}'
        )
    sizes: dict[str, dict[str, int]] = {}
    arriving = None
    for unit in units.every:
        own = by_unit.get(unit.name, {}) if by_unit else of_all
        if isinstance(unit, Tokens):
            full = unit.sizes['tokens'] if arriving is None else arriving
            if 'tokens' in own:
                kept = max(unit.least, _kept(unit, 'tokens', full, own['tokens'], 1))
                sizes[unit.name] = {'tokens': kept}
                arriving = kept if kept == full else kept + 1
            continue
        for kind, ratio in own.items():
            if kind in unit.kinds:
                sizes.setdefault(unit.name, {})[kind] = _kept(
                    unit, kind, unit.sizes[kind], ratio, multiple
                )
    return sizes


def _kept(unit: Unit, kind: str, full: int, ratio: float, multiple: int) -> int:
    try:
        return kept_size(full, ratio, multiple)
    except ValueError as error:
        raise ValueError(f'{kind} of {unit.name}: {error}') from None


def check_names(units: Units, policy: Mapping[str, Mapping], argument: str) -> None:
    """Check that a policy names units and kinds of the network.

    Raises:
        ValueError: It does not; the message says what there is.
    """
    names = units.by_name
    for name, kinds in policy.items():
        if name not in names:
            raise ValueError(
                f'{argument} names the unit {name!r}, the network has {list(names)[:4]} ... '
                f'({len(names)} in all){_left_out(units)}'
            )
        if unknown := set(kinds) - set(names[name].kinds):
            raise ValueError(
                f'{argument} names {sorted(unknown)} of {name}, which has {list(names[name].kinds)}'
                f'{why_missing(Units([names[name]]), unknown)}'
            )


def why_missing(units: Units, kinds: Iterable[str]) -> str:
    """The end of an error message on kinds that a network lacks: why it does."""
    kinds = set(kinds)
    for unit in units:
        for kind in kinds & set(unit.missing):
            return f'; {unit.name} has no {kind}: {unit.missing[kind]}'
    return _left_out(units)


def _left_out(units: Units) -> str:
    if not units.left_out:
        return ''
    name, reason = next(iter(units.left_out.items()))
    return f'; {len(units.left_out)} are left out, the first {name}: {reason}'


def check_sizes(units: Units, sizes: Sizes, argument: str = 'sizes') -> None:
    """Check sizes against those of the network.

    Raises:
        ValueError: A unit or kind is unknown, or a size is no whole number in range.
    """
    check_names(units, sizes, argument)
    names = units.by_name
    for name, kinds in sizes.items():
        for kind, size in kinds.items():
            largest = names[name].sizes[kind]
            whole = isinstance(size, int) and not isinstance(size, bool)
            if not whole or not 1 <= size <= largest:
                raise ValueError(
                    f'{argument}: {kind} of {name} is {size!r}, it must be from 1 to {largest}'
                )
    try:
        token_flow(units, sizes)
    except ValueError as error:
        raise ValueError(f'{argument}: {error}') from None


def without_tokens(sizes: Sizes) -> dict[str, dict[str, int]]:
    """The kinds whose elements a criterion scores: all but ``tokens``, which images choose."""
    own = {
        name: {kind: size for kind, size in kinds.items() if kind != 'tokens'}
        for name, kinds in sizes.items()
    }
    return {name: kinds for name, kinds in own.items() if kinds}


def read_policy(path: str | Path) -> dict[str, dict[str, int]]:
    """Read sizes from a JSON file, ``{unit: {kind: n}}`` at the top or under ``sizes``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON or has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no policy file {path}')
    try:
        policy = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from None
    if isinstance(policy, dict):
        policy = policy.get('sizes', policy)
    if not isinstance(policy, dict) or not all(isinstance(v, dict) for v in policy.values()):
        raise ValueError(f'{path} must be {{"unit": {{"kind": number}}}}, or that under "sizes"')
    return policy


def threshold(
    units: Units,
    scores: Mapping[tuple[str, str], Tensor],
    ratios: Mapping[str, float],
    floors: Mapping[str, int] | None = None,
) -> dict[str, dict[str, int]]:
    """Drop the lowest scores of each kind over the whole network.

    One threshold for each kind drops the share that is asked for, as nearly as equal numbers in
    the heads of a layer allow: of those it keeps the mean over heads, rounded.

    Args:
        units: Units of a network.
        scores: Score of each element, ``(count,)``, by unit name and kind.
        ratios: Share of each kind to drop.
        floors: Fewest elements by kind. Defaults to 1 of each.

    Raises:
        ValueError: A ratio is out of range or has no scores.
    """
    floors = {**FLOORS, **(floors or {})}
    sizes: dict[str, dict[str, int]] = {}
    for kind, ratio in ratios.items():
        own = {name: value.detach().cpu() for (name, k), value in scores.items() if k == kind}
        if not own:
            raise ValueError(f'there are no scores of {kind}')
        every = torch.cat(list(own.values()))
        kept = kept_size(len(every), ratio)
        order = every.argsort(descending=True, stable=True)
        stays = torch.zeros(len(every), dtype=torch.bool)
        stays[order[:kept]] = True
        parts = stays.split([len(value) for value in own.values()])
        for (name, _), part in zip(own.items(), parts, strict=True):
            unit = units.by_name[name]
            number = round(int(part.sum()) / unit.groups(kind))
            number = min(unit.sizes[kind], max(floors[kind], number))
            sizes.setdefault(name, {})[kind] = number
    return sizes
