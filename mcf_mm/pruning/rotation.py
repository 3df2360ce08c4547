"""Other bases for the channels of attention heads: the function stays, the last channels go first.

Between the values and the output projection there is no non-linearity, and queries and keys meet in
a product. Both can be written in any basis of the channels of a head. In the best one, dropping the
last channels is the best approximation of low rank (ours, ``one_shot`` closed form).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.moments import Moments
from mcf_mm.pruning.solves import Basis, pair_bases, value_basis
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Attention


@dataclass
class Turn:
    """A change of basis of ``qk`` or ``v`` of one attention.

    Attributes:
        into: For each side, the matrices of its heads, double ``(heads, d, d)``: the side that
            gives channels (queries, values) is multiplied with the first. Of ``qk`` the second
            side is the key, of ``v`` what reads the values.
        cost: What is lost when n channels of each head are dropped from the end, ``(d + 1,)``.
    """

    into: tuple[Tensor, Tensor]
    cost: Tensor


#: Changes of basis by unit name and kind.
Turns = Mapping[tuple[str, str], Turn]


def find_turns(units: Iterable[Unit], sizes: Sizes, seen: Seen) -> dict[tuple[str, str], Turn]:
    """The best bases of what is to be pruned of ``qk`` and ``v``; nothing is changed.

    Args:
        units: Units of a network.
        sizes: Which kinds are to be pruned; kinds that keep all are passed over.
        seen: With moments of ``v`` and pairs of ``qk``.
    """
    turns = {}
    for unit in units:
        if not isinstance(unit, Attention):
            continue
        for kind in ('qk', 'v'):
            size = sizes.get(unit.name, {}).get(kind)
            if size is not None and size < unit.sizes[kind]:
                turns[unit.name, kind] = find_turn(unit, kind, seen)
    return turns


def find_turn(unit: Attention, kind: str, seen: Seen) -> Turn:
    """The best basis of one kind of one attention; nothing is changed."""
    heads, channels = unit.sizes['heads'], unit.sizes[kind]
    if kind == 'qk':
        pairs = seen.pairs(unit)
        both = [pair_bases(q, k) for q, k in zip(pairs.query, pairs.key, strict=True)]
        first, second = ([pair[side] for pair in both] for side in (0, 1))
        return Turn((_stack(first), _stack(second)), _cost(first))
    moments = seen.moments(unit, 'v')
    weight = unit.proj.weight.detach().double().unflatten(1, (heads, channels))
    bases: list[Basis] = []
    for head in range(heads):
        own = slice(head * channels, (head + 1) * channels)
        bases.append(value_basis(weight[:, head], moments.covariance[own, own], moments.metric))
    back = torch.stack([basis.back for basis in bases])
    return Turn((_stack(bases), back.mT), _cost(bases))


def _stack(bases: list[Basis]) -> Tensor:
    return torch.stack([basis.into for basis in bases])


def _cost(bases: list[Basis]) -> Tensor:
    return reduce(torch.add, (basis.cost for basis in bases))


@torch.no_grad()
def turn(units: Iterable[Unit], turns: Turns) -> None:
    """Write the channels of heads in other bases, in place; the function of the network stays.

    Args:
        units: Units of the network that ``turns`` was found for, or of a copy (an average).
        turns: See :func:`find_turns`.
    """
    for unit in units:
        for kind in unit.kinds:
            if (unit.name, kind) not in turns:
                continue
            into = turns[unit.name, kind].into
            axes = unit.axes(kind)
            for place, axis in enumerate(axes):
                parameter = unit.parameter(axis.parameter)
                if parameter is None:
                    continue
                # Weight and bias of the query, of the key; or of the value, and proj's weight.
                matrix = into[place // 2].to(parameter.device)
                entries = parameter.data.narrow(axis.dim, axis.offset, unit.count(kind))
                blocks = entries.double().movedim(axis.dim, 0).unflatten(0, matrix.shape[:2])
                turned = torch.einsum('hde,he...->hd...', matrix, blocks)
                entries.copy_(turned.flatten(0, 1).movedim(0, axis.dim))


def turn_moments(moments: Moments, matrices: Tensor) -> Moments:
    """Moments of the values of all heads after a change of basis.

    Args:
        moments: Of ``v``.
        matrices: ``(heads, d, d)``, the first of :attr:`Turn.into`.
    """
    one = torch.ones(1, 1, dtype=matrices.dtype, device=matrices.device)
    whole = torch.block_diag(*matrices, one)
    second = whole @ moments.second @ whole.T
    return Moments(second, moments.metric, moments.tokens, moments.ridge)
