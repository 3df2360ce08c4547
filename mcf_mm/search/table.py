"""Measured times of one unit on a grid of its sizes, and interpolation between them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.layers import SlimLinear
from mcf_mm.pruning.surgery import resize
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN, Attention

#: Grid points lie this far apart, or a multiple of it; few sizes stay below it.
STEP = 8

#: Shares of a kind at which numbers that are no multiples are measured.
ODD = (0.8, 0.65, 0.5)


def grid(full: int, number: int, step: int = STEP, start: int = 0) -> list[int]:
    """Evenly spaced sizes, ascending: from ``full - start`` down by multiples of ``step``."""
    last = (full - start - 1) // step
    places = torch.linspace(0, last, min(number, last + 1), dtype=torch.double).round().tolist()
    return sorted({full - start - step * int(place) for place in places})


def interpolate(axes: list[list[int]], values: Tensor, points: list[int | Tensor]) -> Tensor:
    """Multilinear interpolation; the outermost cells go on outside of the grid.

    Args:
        axes: Ascending coordinates of each dimension, one or more.
        values: At the grid points, one dimension for each axis.
        points: A coordinate for each axis: numbers, or tensors that broadcast.

    Returns:
        Double precision, of the shape that ``points`` broadcast to.
    """
    corners = [(torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.double))]
    for axis, point in zip(axes, points, strict=True):
        point = torch.as_tensor(point, dtype=torch.double)
        known = torch.tensor(axis, dtype=torch.double)
        if len(axis) == 1:
            sides = [(torch.zeros_like(point, dtype=torch.long), torch.ones_like(point))]
        else:
            cell = torch.bucketize(point, known[1:-1], right=True)
            share = (point - known[cell]) / (known[cell + 1] - known[cell])
            sides = [(cell, 1 - share), (cell + 1, share)]
        corners = [
            (index * len(axis) + place, weight * part)
            for index, weight in corners
            for place, part in sides
        ]
    flat = values.flatten()
    return reduce(torch.add, (flat[index] * weight for index, weight in corners))


@dataclass(frozen=True)
class Table:
    """Seconds of one unit by its sizes, for all of its calls in one batch.

    Attributes:
        axes: Sizes that were measured, ascending, by kind.
        seconds: One dimension for each kind.
        shared: Of attention, numbers of q/k channels that were measured with as many v channels,
            which libraries compute with other code.
        equal: Seconds by heads and ``shared``; None if there are none.
        odd: Factor by kind for sizes that are no multiples of 8 (of ``v``: of 4), which devices
            compute slower; ``'equal'`` is that of ``qk`` and ``v`` together.
    """

    axes: dict[str, list[int]]
    seconds: Tensor
    shared: list[int] = field(default_factory=list)
    equal: Tensor | None = None
    odd: dict[str, float] = field(default_factory=dict)

    def of(self, sizes: Mapping[str, int | Tensor]) -> Tensor:
        """Seconds with these sizes, double precision; sizes may be tensors that broadcast."""
        time = self._at(self.axes, self.seconds, sizes)
        for kind in (kind for kind in self.axes if kind in self.odd):
            time = time * self._factor(kind, sizes[kind], STEP // 2 if kind == 'v' else STEP)
        if self.equal is not None:
            axes = {'heads': self.axes['heads'], 'v': self.shared}
            equal = self._at(axes, self.equal, sizes) * self._factor('equal', sizes['v'], STEP)
            alike = torch.as_tensor(sizes['qk']) == torch.as_tensor(sizes['v'])
            time = torch.where(alike, equal, time)
        return time

    def _factor(self, key: str, size: int | Tensor, multiple: int) -> Tensor:
        """The factor of ``odd`` where a size is no multiple, else 1."""
        odd = torch.as_tensor(size) % multiple != 0
        return 1 + (self.odd.get(key, 1.0) - 1) * odd.double()

    def scaled(self, factor: float) -> 'Table':
        """The same with all times multiplied by ``factor``."""
        equal = None if self.equal is None else self.equal * factor
        return Table(self.axes, self.seconds * factor, self.shared, equal, self.odd)

    @staticmethod
    def _at(axes: Mapping[str, list[int]], seconds: Tensor, sizes: Mapping) -> Tensor:
        time = interpolate(list(axes.values()), seconds, [sizes[kind] for kind in axes])
        return time.clamp(min=0.0)

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` reads."""
        equal = None if self.equal is None else self.equal.tolist()
        return {
            'axes': self.axes,
            'seconds': self.seconds.tolist(),
            'shared': self.shared,
            'equal': equal,
            'odd': self.odd,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> 'Table':
        """The inverse of :meth:`to_dict`."""
        axes = {kind: [int(size) for size in axis] for kind, axis in content['axes'].items()}
        seconds = torch.tensor(content['seconds'], dtype=torch.double)
        shared = [int(size) for size in content['shared']]
        equal = content['equal']
        equal = None if equal is None else torch.tensor(equal, dtype=torch.double)
        if list(seconds.shape) != [len(axis) for axis in axes.values()]:
            raise ValueError(f'seconds have shape {tuple(seconds.shape)}, not that of the axes')
        if equal is not None and list(equal.shape) != [len(axes['heads']), len(shared)]:
            raise ValueError(f'equal has shape {tuple(equal.shape)}, not that of its axes')
        odd = {key: float(factor) for key, factor in content['odd'].items()}
        return cls(axes, seconds, shared, equal, odd)


def resize_spread(unit: Unit, sizes: Mapping[str, int]) -> None:
    """Resize a unit; inputs that an FFN keeps lie all over the width, as pruning leaves them."""
    resize(unit, sizes)
    if isinstance(unit, FFN) and isinstance(fc1 := unit.fc1, SlimLinear):
        places = torch.linspace(0, unit.width - 1, len(fc1.inputs), dtype=torch.double)
        fc1.inputs.copy_(places.round().long())


class Plan:
    """Which sizes of a unit are measured.

    Args:
        unit: The unit, as it is in the dense network.
        points: Grid points by kind.

    Attributes:
        axes: Sizes of the grid by kind.
        shared: Of attention, numbers of q/k channels that are measured with as many v channels.
        sizes: Sizes of each measurement: of the grid, of ``shared``, then of ``odd``.
        odd: Which factor of :attr:`Table.odd` each pair of the last measurements is for: a
            multiple of 8, then 3 less.
    """

    def __init__(self, unit: Unit, points: Mapping[str, int]):
        self.unit = unit
        full = unit.sizes
        # v has sizes that q/k has not: libraries compute attention with other code where both are
        # equal. So all v channels are beyond the grid, by half a step.
        self.axes = {}
        for kind in unit.kinds:
            step = 1 if kind == 'heads' else STEP if full[kind] >= 2 * STEP else 2
            start = step // 2 if kind == 'v' else 0
            self.axes[kind] = grid(full[kind], points[kind], step, min(start, full[kind] - 1))
        if isinstance(unit, FFN) and full['inputs'] > STEP and not unit.is_pruned:
            # Inputs are gathered unless all are read.
            self.axes['inputs'] = sorted({*self.axes['inputs'], full['inputs'] - STEP})
        mesh = torch.cartesian_prod(*map(torch.tensor, self.axes.values())).tolist()
        self.sizes = [dict(zip(self.axes, own, strict=True)) for own in mesh]
        self.shared: list[int] = []
        if isinstance(unit, Attention):
            most = min(full['qk'], full['v'])
            if 'qk' in unit.kinds:
                self.shared = grid(most, points['v'], STEP if most >= 2 * STEP else 2)
            elif full['qk'] <= full['v']:
                self.shared = [full['qk']]
            self.sizes += [
                {'heads': heads, 'qk': size, 'v': size}
                for heads in self.axes['heads']
                for size in self.shared
            ]
        self.grid_size = len(self.sizes)
        self.odd: list[str] = []
        even = [
            k for k in unit.kinds if k != 'heads' and full[k] >= 2 * STEP and not full[k] % STEP
        ]
        for key in [*even, *(['equal'] if {'qk', 'v'} <= set(even) else [])]:
            for share in ODD:
                kinds = ('qk', 'v') if key == 'equal' else (key,)
                for less in (0, 3):
                    own = {kind: round(share * full[kind] / STEP) * STEP - less for kind in kinds}
                    self.sizes.append({**{kind: full[kind] for kind in unit.kinds}, **own})
                self.odd.append(key)

    def modules(self) -> list[nn.Module]:
        """The unit's module with each of the sizes."""
        modules = []
        for sizes in self.sizes:
            unit = copy.copy(self.unit)
            unit.module = copy.deepcopy(self.unit.module)
            resize_spread(unit, sizes)
            modules.append(unit.module)
        return modules

    def table(self, seconds: list[float]) -> Table:
        """The table from the times of all :attr:`sizes`."""
        shape = [len(axis) for axis in self.axes.values()]
        times = torch.tensor(seconds[: self.grid_size], dtype=torch.double)
        split = len(times) - shape[0] * len(self.shared)
        equal = times[split:].view(shape[0], -1) if self.shared else None
        table = Table(self.axes, times[:split].view(shape), self.shared, equal)
        expected = [float(table.of({**self.unit.sizes, **own})) for own in self.sizes]
        ratios: dict[str, list[float]] = {}
        for place, key in enumerate(self.odd):
            even = self.grid_size + 2 * place
            smooth = expected[even + 1] * seconds[even]
            ratio = seconds[even + 1] * expected[even] / smooth if smooth > 0 else 1.0
            ratios.setdefault(key, []).append(ratio)
        odd = {key: min(2.0, max(1.0, median(own))) for key, own in ratios.items()}
        return replace(table, odd=odd)
