"""Judges on one half of the images what was solved on the other (cross-validation, closed form).

Moments of few images fit them better than others: in the last blocks the loss feels the class token
alone, which gives one sample for each image. A cost on the images that it was solved on would be
too low there, and a policy would cut there too much.
"""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from mcf_mm.pruning.moments import Moments
from mcf_mm.pruning.pairs import Pairs
from mcf_mm.pruning.solves import (
    RIDGE,
    Judge,
    RemovalOrder,
    group_removal_order,
    pair_bases,
    removal_order,
    solve_kept,
    value_basis,
)

#: Ridge terms that are tried.
RIDGES = (RIDGE, 1e-2, 3e-2, 1e-1, 3e-1)
#: Share of the elements that is kept when they are tried.
KEPT = 0.6
#: Sizes at which a curve is judged.
LOOKS = 16


def best_ridge(weight: Tensor, halves: tuple[Moments, Moments], kept: Tensor) -> float:
    """The ridge term whose solution on each half of the images is best on the other.

    Args:
        weight: Weights and bias of the layer, double ``(O, I + 1)``.
        halves: Moments of both.
        kept: Inputs that stay.
    """
    pairs = [(one, judge(weight, other)) for one, other in (halves, halves[::-1])]

    def error(ridge: float) -> float:
        return sum(own(solve_kept(weight, one.second, kept, ridge), kept) for one, own in pairs)

    return min(RIDGES, key=error)


def judge(weight: Tensor, moments: Moments) -> Judge:
    """What tells the loss of solutions on some images, see :class:`Judge`."""
    return Judge(weight, moments.second, moments.metric)


def judged_removal(weight: Tensor, halves: tuple[Moments, Moments]) -> tuple[RemovalOrder, Tensor]:
    """The order of removal on the first half of the images, and what it costs on the second.

    Returns:
        The order, and the loss when n inputs have gone, ``(I + 1,)``.
    """
    one, other = halves
    every, own = max(1, (weight.shape[1] - 1) // LOOKS), judge(weight, other)
    judged_at: dict[int, float] = {}

    def look(number: int, alive: Tensor, solved: Tensor) -> None:
        if number >= len(judged_at) * every:
            judged_at[number] = own(solved, alive[:-1])

    order = removal_order(weight, one.second, one.metric, RIDGES[1], look=look)
    return order, _curve(order.cost, judged_at)


def judged_groups(weight: Tensor, halves: tuple[Moments, Moments], groups: int) -> Tensor:
    """What it costs on the second half of the images to remove groups chosen on the first.

    Returns:
        The loss when n groups have gone, ``(groups + 1,)``.
    """
    one, other = halves
    order = group_removal_order(weight, one.second, one.metric, groups, RIDGES[1])
    size, own = (weight.shape[1] - 1) // groups, judge(weight, other)
    judged_at = {}
    for number in range(1, groups):
        stay = order.kept(groups - number)
        kept = (stay[:, None] * size + torch.arange(size)).flatten().to(weight.device)
        solved = solve_kept(weight, one.second, kept, RIDGES[1])
        judged_at[number] = own(solved, kept)
    return _curve(order.cost, judged_at)


def judged_values(weight: Tensor, halves: tuple[Moments, Moments], heads: int) -> Tensor:
    """What it costs on the second half of the images to drop channels in the bases of the first.

    Args:
        weight: Weights and bias of proj, double ``(O, heads * d + 1)``.
        halves: Moments of the values.
        heads: Number of heads.

    Returns:
        The loss when n channels of each head have gone, ``(d + 1,)``.
    """
    one, other = halves
    channels = (weight.shape[1] - 1) // heads
    own = weight[:, :-1].unflatten(1, (heads, channels))
    bases = []
    for head in range(heads):
        part = slice(head * channels, (head + 1) * channels)
        bases.append(value_basis(own[:, head], one.covariance[part, part], one.metric))
    constant = weight.new_ones(1, 1)
    into = torch.block_diag(*(basis.into for basis in bases), constant)
    back = torch.block_diag(*(basis.back for basis in bases), constant)
    turned = weight @ back
    one, other = (Moments(into @ m.second @ into.T, m.metric, m.tokens) for m in halves)
    judged_at, loss = {}, judge(turned, other)
    for number in _numbers(channels):
        first = torch.arange(channels - number, device=weight.device)
        kept = (torch.arange(heads, device=weight.device)[:, None] * channels + first).flatten()
        solved = solve_kept(turned, one.second, kept, RIDGES[1])
        judged_at[number] = loss(solved, kept)
    return _curve(reduce(torch.add, (basis.cost for basis in bases)), judged_at)


def judged_pairs(halves: tuple[Pairs, Pairs]) -> Tensor:
    """What it costs on the second half of the images to drop channels in the bases of the first.

    Returns:
        The loss when n channels of each head have gone, ``(d + 1,)``.
    """
    one, other = halves
    channels = one.query.shape[-1]
    total = one.query.new_zeros(channels + 1)
    for head in range(len(one.query)):
        query, key = pair_bases(one.query[head], one.key[head])
        for number in range(1, channels + 1):
            left, right = query.into[: channels - number], key.into[: channels - number]
            error = torch.eye(channels).to(left) - left.T @ right
            felt = other.query[head] @ error @ other.key[head]
            total[number] += (felt * error).sum()
    return total.cummax(0).values.cpu()


def _numbers(size: int) -> Iterable[int]:
    return sorted({max(1, round(size * step / LOOKS)) for step in range(1, LOOKS)})


def _curve(cost: Tensor, judged_at: dict[int, float]) -> Tensor:
    """A cost curve with the shape of ``cost`` through points that were judged, never falling."""
    cost = cost.double().cpu()
    numbers = [n for n in sorted(judged_at) if float(cost[n]) > 0]
    if not numbers:
        return cost
    ratios = torch.tensor([judged_at[n] / float(cost[n]) for n in numbers], dtype=torch.double)
    place = torch.arange(len(cost), dtype=torch.double)
    points = torch.tensor(numbers, dtype=torch.double)
    after = torch.searchsorted(points, place).clamp(1, max(1, len(points) - 1))
    if len(points) == 1:
        return (cost * ratios[0]).cummax(0).values
    before = after - 1
    share = ((place - points[before]) / (points[after] - points[before])).clamp(0, 1)
    ratio = ratios[before] * (1 - share) + ratios[after] * share
    return (cost * ratio).cummax(0).values
