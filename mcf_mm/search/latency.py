"""How long a network with given sizes takes on this machine, from a table of measured times."""

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.files import write_json
from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.structure import Sizes, check_whole
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Units
from mcf_mm.search.table import STEP, Plan, Table, resize_spread
from mcf_mm.search.timing import (
    QUEUED,
    default_clock,
    device_of,
    evaluation,
    machine,
    measure_times,
    record_calls,
    run_calls,
)

#: Grid points by kind. Each combination of a unit is measured.
POINTS = {'inputs': 4, 'hidden': 5, 'heads': 3, 'qk': 4, 'v': 4}
#: Share of each kind that is kept in networks that are measured as a whole. Alone a unit takes
#: another time than in its network, for caches and memory: one factor for all brings both together.
WHOLE = (
    {'heads': 0.6, 'qk': 0.6, 'v': 0.6, 'inputs': 0.6, 'hidden': 0.6},
    {'heads': 0.5, 'hidden': 0.5},
    {'qk': 0.6, 'v': 0.75, 'inputs': 0.7, 'hidden': 0.6},
)


@dataclass
class Latency:
    """Time of a network for any sizes of its units, from a table of measured times.

    Attributes:
        dense: Seconds of one batch of the network that was measured.
        rest: Seconds of everything else than its units.
        sizes: Sizes of its units, ``{unit: {kind: n}}``.
        units: Which of ``tables`` is for each unit.
        tables: Measured times; equal units share one.
        facts: ``device``, ``threads``, ``torch``, ``dtype``, ``batch``, ``rounds`` and ``factor``
            (by which the times of units alone were multiplied).
    """

    dense: float
    rest: float
    sizes: dict[str, dict[str, int]]
    units: dict[str, int]
    tables: list[Table]
    facts: dict[str, Any] = field(default_factory=dict)
    _known: dict[tuple, float] = field(default_factory=dict, repr=False, compare=False)

    def of(self, sizes: Sizes) -> float:
        """Predicted seconds of one batch; units and kinds that are not named stay.

        Raises:
            ValueError: A unit was not measured.
        """
        if unknown := set(sizes) - set(self.units):
            raise ValueError(f'there are no measured times of {sorted(unknown)[0]!r}')
        times = (self.of_unit(name, sizes.get(name, {})) for name in self.units)
        return float(self.rest + sum(times))

    def of_unit(self, name: str, sizes: Mapping[str, int | Tensor]) -> float | Tensor:
        """Predicted seconds of one unit, for all of its calls in one batch.

        Args:
            name: Name of the unit.
            sizes: Numbers by kind, or tensors on the CPU that broadcast, then the result is a
                tensor in double precision. Kinds that are not named stay.

        Raises:
            ValueError: The unit was not measured.
        """
        if name not in self.units:
            raise ValueError(f'there are no measured times of {name!r}')
        own = {**self.sizes[name], **sizes}
        table = self.tables[self.units[name]]
        if any(isinstance(size, Tensor) for size in own.values()):
            return table.of(own)
        # A search asks for the same sizes again and again, of all units that share a table.
        key = (self.units[name], *(own[kind] for kind in sorted(own)))
        if key not in self._known:
            self._known[key] = float(table.of(own))
        return self._known[key]

    def check(self, units: Units, source: str = 'latency') -> None:
        """Check that the table is of a network.

        Raises:
            ValueError: A unit is missing or has other sizes.
        """
        for unit in units:
            if self.sizes.get(unit.name) != unit.sizes:
                known = self.sizes.get(unit.name, 'no such unit')
                raise ValueError(
                    f'{source} is of another network: {unit.name} has {unit.sizes}, and there '
                    f'{known}; measure this one'
                )

    def save(self, path: str | Path) -> None:
        """Write a JSON file that :func:`read_latency` reads; it appears whole or not at all."""
        content = {
            'facts': self.facts,
            'dense': self.dense,
            'rest': self.rest,
            'sizes': self.sizes,
            'units': self.units,
            'tables': [table.to_dict() for table in self.tables],
        }
        write_json(path, content)


def read_latency(
    path: str | Path, device: torch.device | str | None = 'cpu', strict: bool = True
) -> Latency:
    """Read what :meth:`Latency.save` wrote.

    Args:
        path: JSON file.
        device: Device that the network is to run on; None to read without a comparison. Defaults
            to ``'cpu'``.
        strict: Whether times of another device or another number of threads are an error, or a
            warning of one line. Another version of torch is always the latter. Batch size and
            type are in ``facts`` and not compared. Defaults to True.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no table, or one of another device or number of threads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of measured times {path}')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        latency = Latency(
            float(content['dense']),
            float(content['rest']),
            content['sizes'],
            content['units'],
            [Table.from_dict(table) for table in content['tables']],
            dict(content['facts']),
        )
        for name, place in latency.units.items():
            missing = set(latency.tables[place].axes) - set(latency.sizes[name])
            if missing or place < 0:
                raise ValueError(f'{name} has no sizes of {sorted(missing)}')
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} has no measured times as measure_latency() writes them: {error!r}'
        ) from None
    if device is not None:
        here = machine(device)
        other = [key for key in here if latency.facts.get(key) != here[key]]
        if other:
            was, now = (
                ', '.join(f'{key} {facts.get(key)}' for key in other)
                for facts in (latency.facts, here)
            )
            message = f'{path} was measured with {was}; here it is {now}'
            if strict and other != ['torch']:
                raise ValueError(f'{message}: measure again, or read it with strict=False')
            warnings.warn(message, stacklevel=2)
    return latency


def measure_latency(
    model: nn.Module,
    forward: Callable[[nn.Module], Any],
    units: Units | None = None,
    *,
    points: Mapping[str, int] | None = None,
    rounds: int = 15,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] | None = None,
) -> Latency:
    """Measure units on a grid of their sizes, on the device and with the threads of now.

    Each unit runs alone on what it is called with in one forward pass, cut to each grid point;
    equal units are measured once. The rest of the network is its whole time without that of its
    units, after one factor for all units, which a few smaller networks tell that are measured as a
    whole (:data:`WHOLE`). All copies are in memory at once: of a ViT three, and of one of its
    blocks some 30.

    Args:
        model: The dense network. Runs in evaluation mode; its modes are restored.
        forward: Runs it on one batch, ``lambda model: model(images)``; may use torch.autocast.
        units: Its units. Defaults to all.
        points: Grid points by kind, 2 or more. Defaults to :data:`POINTS`; kinds that are not
            named keep theirs.
        rounds: Timed runs of each point, of which the lower quartile counts. Defaults to 15.
        progress: Called with (rounds done, rounds in all). Defaults to None.
        clock: Seconds now. Defaults to the processor's time on one CPU thread, else the wall's.

    Raises:
        ValueError: An argument is out of range, there is no unit, or one is not run by
            ``forward``.
    """
    check_whole('rounds', rounds, 1)
    if unknown := set(points or {}) - set(POINTS):
        raise ValueError(f'points names {sorted(unknown)}, the kinds are {list(POINTS)}')
    for kind, number in (points or {}).items():
        check_whole(f'points of {kind}', number, 2)
    units = find_units(model) if units is None else units
    if not units:
        raise ValueError(f'{type(model).__name__} has no unit whose time could be measured')
    device = device_of(model)
    with evaluation(model):
        seen = record_calls(model, forward, units)
        alike: dict[tuple, list[Unit]] = {}
        for unit in units:
            alike.setdefault(tuple(seen.keys[unit.name]), []).append(unit)
        plans = [Plan(own[0], {**POINTS, **(points or {})}) for own in alike.values()]
        whole = [_shrunk(units, shares) for shares in WHOLE]
        models = [model, *(_copy(model, sizes) for sizes in whole)]
        works: list[tuple[Callable[[], Any], int]] = [(partial(forward, m), 1) for m in models]
        for key, plan in zip(alike, plans, strict=True):
            calls = [seen.calls[part] for part in key]
            for module in plan.modules():
                works.append((partial(run_calls, module, calls, device), QUEUED))
        clock = default_clock(device) if clock is None else clock
        seconds = measure_times(works, device, rounds, clock, progress)
    totals, seconds = seconds[: len(models)], seconds[len(models) :]
    tables = []
    for plan in plans:
        tables.append(plan.table(seconds[: len(plan.sizes)]))
        seconds = seconds[len(plan.sizes) :]
    places = {unit.name: place for place, own in enumerate(alike.values()) for unit in own}
    call = next(iter(seen.calls.values()))
    facts = {
        **machine(device),
        'dtype': str(call.autocast or next(model.parameters()).dtype).removeprefix('torch.'),
        'batch': seen.batch,
        'rounds': rounds,
    }
    order = {unit.name: places[unit.name] for unit in units}
    latency = Latency(totals[0], 0.0, units.sizes, order, tables, facts)
    return _calibrated(latency, whole, totals)


def _shrunk(units: Units, shares: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Sizes with a share of each kind, multiples of 8 where the whole is large enough."""
    sizes: dict[str, dict[str, int]] = {}
    for unit in units:
        for kind in (kind for kind in unit.kinds if kind in shares):
            full = unit.sizes[kind]
            step = STEP if kind != 'heads' and full >= 2 * STEP else 1
            sizes.setdefault(unit.name, {})[kind] = max(1, round(full * shares[kind] / step) * step)
    return sizes


def _copy(model: nn.Module, sizes: Sizes) -> nn.Module:
    """A copy of a network with other sizes."""
    small = copy.deepcopy(model)
    for unit in find_units(small):
        resize_spread(unit, sizes.get(unit.name, {}))
    return small


def _calibrated(latency: Latency, whole: Sequence[Sizes], totals: Sequence[float]) -> Latency:
    """Scale the times of all units so that those of whole networks come out, the dense one exactly.

    Args:
        latency: Times of units alone, without a rest.
        whole: Sizes of networks that were measured as a whole.
        totals: Seconds of the dense network and of these.
    """
    own = latency.of({})
    saved = [
        (own - latency.of(sizes), totals[0] - time)
        for sizes, time in zip(whole, totals[1:], strict=True)
    ]
    factor = 1.0
    if (square := sum(alone**2 for alone, _ in saved)) > 0:
        factor = max(0.0, sum(alone * really for alone, really in saved) / square)
    if own > 0:
        factor = min(factor, totals[0] / own)  # the rest takes no less than no time
    latency._known.clear()
    latency.tables = [table.scaled(factor) for table in latency.tables]
    latency.rest = totals[0] - latency.of({})
    latency.facts['factor'] = factor
    return latency
