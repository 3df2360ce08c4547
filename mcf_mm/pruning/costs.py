"""Parameters and MACs of a policy in closed form, from the sizes alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.flop_counter import flop_counter
from mcf_mm.pruning.policy import without_tokens
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.token_units import Tokens
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN, Attention, Units


@dataclass(frozen=True)
class _Part:
    """What one unit costs, as a function of its sizes.

    Attributes:
        width: Channels C that it reads and gives.
        bias: 1 with a bias of fc1, or of query, key and value; else 0.
        per_head: Other parameters of one head.
        calls: (Tokens, pairs of query and key) of every call for one image.
        width_out: Outputs of the last layer.
        leaving: Tokens that stay before the last layer of an attention; None for all.
        readers: Tokens whose attention is computed once more, to choose those.
    """

    width: int
    bias: int
    per_head: int
    calls: tuple[tuple[int, int], ...]
    width_out: int
    leaving: int | None = None
    readers: int = 0


@dataclass(frozen=True)
class _Reduction:
    """Where tokens can be dropped.

    Attributes:
        unit: Name of the unit of tokens.
        attention: Name of the attention in front of it.
        behind: Names of the units behind it, up to the attention of the next.
        number: Tokens of an image of the size that sizes are numbers of.
        counted: Tokens of the image that was counted, which may be of another size.
        kept: Tokens that stay in the network that was counted; None where all do.
        least: Fewest tokens that stay.
        readers: See :class:`_Part`.
    """

    unit: str
    attention: str
    behind: tuple[str, ...]
    number: int
    counted: int
    kept: int | None
    least: int
    readers: int


class Times(Protocol):
    """Measured times, such as :class:`mcf_mm.search.latency.Latency`.

    Attributes:
        rest: Seconds of everything else than the units.
    """

    rest: float

    def of_unit(self, name: str, sizes: Mapping[str, int | Tensor]) -> float | Tensor:
        """Seconds of one unit with these sizes."""


@dataclass
class Costs:
    """Parameters and MACs of a network for any sizes of its units, and its time if measured.

    What the units do not cost is counted once, with torch's FlopCounterMode; what they cost is
    arithmetic, a few microseconds for each. MACs include the products inside attention.

    Attributes:
        sizes: Sizes of the network that was counted.
        params: Parameters of everything else than the units' own.
        macs: The same for MACs.
        latency: Measured times; with them there is a third cost, seconds. Defaults to None.
    """

    sizes: dict[str, dict[str, int]]
    params: int = 0
    macs: int = 0
    latency: Times | None = None
    _parts: dict[str, _Part] = field(default_factory=dict)
    _reductions: tuple[_Reduction, ...] = ()

    def with_tokens(self, sizes: Sizes) -> 'Costs':
        """Costs of the network in which the units of tokens have these sizes.

        All units behind a reduction cost less. Other kinds of ``sizes`` are passed over.

        Raises:
            ValueError: There are measured times, which are of all tokens.
        """
        if not any('tokens' in kinds for kinds in sizes.values()):
            return self
        if self.latency is not None:
            raise ValueError(
                'times are measured with all tokens: a budget of latency cannot prune tokens'
            )
        parts = dict(self._parts)
        # Of what arrives in the image that was counted the share stays that sizes say.
        of, arriving = self._reductions[0].number, self._reductions[0].counted
        for reduction in self._reductions:
            kept = sizes.get(reduction.unit, {}).get('tokens', reduction.kept)
            stay = arriving if kept is None else max(arriving * kept // of, reduction.least)
            drops = stay < arriving
            leaving = stay + 1 if drops else arriving
            of = of if kept is None or kept >= of else kept + 1
            parts[reduction.attention] = replace(
                parts[reduction.attention],
                calls=((arriving, arriving * arriving),),
                leaving=leaving if drops else None,
                readers=reduction.readers if drops else 0,
            )
            for name in reduction.behind:
                parts[name] = replace(parts[name], calls=((leaving, leaving * leaving),))
            arriving = leaving
        return replace(self, _parts=parts)

    def of(self, sizes: Sizes) -> dict[str, int | float]:
        """Cost of the network with these sizes; units and kinds that are not named stay.

        Returns:
            ``{'params': int, 'macs': int}``, with measured times ``'latency': float`` (seconds).
        """
        own_costs = self.with_tokens(sizes)
        if own_costs is not self:
            return own_costs.of(without_tokens(sizes))
        totals: dict[str, int | float] = {'params': self.params, 'macs': self.macs}
        if self.latency is not None:
            totals['latency'] = self.latency.rest
        for name, own in self.sizes.items():
            for what, cost in zip(
                totals, self.of_unit(name, {**own, **sizes.get(name, {})}), strict=True
            ):
                totals[what] += cost
        return totals

    def of_unit(self, name: str, sizes: Mapping[str, int | Tensor]) -> tuple:
        """(Parameters, MACs) of one unit with these sizes, biases included.

        Args:
            name: Name of the unit.
            sizes: A number for each of its kinds, or tensors of numbers that broadcast, such as a
                grid; then the costs are tensors of the shape that they broadcast to.

        Returns:
            Parameters and MACs; with measured times seconds as well.
        """
        counts = self._count(name, sizes)
        if self.latency is None:
            return counts
        return *counts, self.latency.of_unit(name, sizes)

    def macs_by_layer(self, name: str) -> dict[str, int]:
        """MACs of one unit with the sizes that were counted, by what computes them.

        Returns:
            ``{'ffn': int}``, or of an attention ``q/k``, ``v`` and ``projection``, and ``attention
            products``: query times key and attention times value.
        """
        part, own = self._parts[name], self.sizes[name]
        if 'hidden' in own:
            return {'ffn': self._count(name, own)[1]}
        heads, qk, v = own['heads'], own['qk'], own['v']
        tokens = sum(tokens for tokens, _ in part.calls)
        pairs = sum(pairs for _, pairs in part.calls)
        leaving = tokens if part.leaving is None else part.leaving * len(part.calls)
        return {
            'q/k': tokens * 2 * heads * qk * part.width,
            'v': tokens * heads * v * part.width,
            'projection': leaving * part.width_out * heads * v,
            'attention products': pairs * heads * (qk + v) + part.readers * tokens * heads * qk,
        }

    def _count(self, name: str, sizes: Mapping[str, int | Tensor]) -> tuple:
        """(Parameters, MACs) of one unit."""
        if 'tokens' in sizes:
            return 0, 0  # they make the others cheaper, see with_tokens()
        part = self._parts[name]
        if 'hidden' in sizes:
            inputs, hidden = sizes['inputs'], sizes['hidden']
            params = hidden * (inputs + part.bias + part.width_out)
            tokens = sum(tokens for tokens, _ in part.calls)
            return params, tokens * hidden * (inputs + part.width_out)
        heads, qk, v = sizes['heads'], sizes['qk'], sizes['v']
        rows = heads * (2 * qk + v)
        columns = part.width_out * heads * v
        params = rows * part.width + columns + rows * part.bias + heads * part.per_head
        macs = sum(
            tokens * rows * part.width
            + (tokens if part.leaving is None else part.leaving) * columns
            + pairs * heads * (qk + v)
            + part.readers * tokens * heads * qk
            for tokens, pairs in part.calls
        )
        return params, macs


def measure_costs(
    model: nn.Module, forward: Callable[[nn.Module], Any], units: Units | None = None
) -> Costs:
    """Count a network once, so that any sizes of its units can be counted by arithmetic.

    Args:
        model: The network. Runs in evaluation mode; its modes are restored.
        forward: Runs it on one image, ``lambda model: model(torch.zeros(1, 3, 224, 224))``.
        units: Its units. Defaults to all.

    Raises:
        ValueError: A unit was not run by ``forward``.
    """
    units = find_units(model) if units is None else units
    calls: dict[str, list[tuple[int, int]]] = {unit.name: [] for unit in units}
    handles = []
    for unit in units:
        layer = unit.places('inputs')[0].module

        def note(module, args, name=unit.name, own=unit.module):
            x = args[0]
            tokens = x.numel() // x.shape[-1]
            # Attention that cuts windows itself knows better.
            inside = hasattr(own, 'num_pairs')
            calls[name].append((tokens, own.num_pairs(len(x)) if inside else tokens * x.shape[-2]))

        handles.append(layer.register_forward_pre_hook(note))
    training = [module for module in model.modules() if module.training]
    counter = flop_counter()
    try:
        # With gradients: without them nn.MultiheadAttention is one operator without a formula.
        with torch.enable_grad(), counter:
            model.train(False)
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    missing = [name for name, seen in calls.items() if not seen]
    if missing:
        raise ValueError(
            f'{missing[0]} is not run in evaluation (nor are {len(missing) - 1} others): it cannot '
            'be calibrated or counted'
        )
    costs = Costs(
        {unit.name: unit.sizes for unit in units},
        _parts={unit.name: _part(unit, calls[unit.name]) for unit in units},
        _reductions=tuple(_reductions(units, calls)),
    )
    own = costs.of({})
    parameters = {id(p): p.numel() for p in model.parameters()}
    costs.params = sum(parameters.values()) - int(own['params'])
    costs.macs = counter.get_total_flops() // 2 - int(own['macs'])
    return costs


def _part(unit: Unit, calls: list[tuple[int, int]]) -> _Part:
    if isinstance(unit, FFN):
        return _Part(
            unit.width, int(unit.fc1.bias is not None), 0, tuple(calls), unit.fc2.out_features
        )
    assert isinstance(unit, Attention)
    layers = [getattr(unit.module, name) for name in unit.layout.qkv_names]
    tables = [getattr(unit.module, name) for name in unit.layout.per_head_names]
    return _Part(
        layers[0].in_features,
        int(layers[0].bias is not None),
        sum(table.shape[0] for table in tables),
        tuple(calls),
        unit.proj.out_features,
        *_reduced(unit, calls[0][0]),
    )


def _reduced(unit: Attention, arriving: int) -> tuple[int | None, int]:
    """Tokens that leave an attention which drops some, and how many are looked at for it."""
    reduction = getattr(unit.module, 'reduction', None)
    if reduction is None or reduction.number(arriving) >= arriving:
        return None, 0
    start, stop = reduction.readers
    return reduction.number(arriving) + 1, (0 if stop is None else stop) - start


def _reductions(units: Units, calls: Mapping[str, list]) -> Iterator[_Reduction]:
    """Where tokens can be dropped, in the order of the forward pass."""
    every = units.every
    places = [(number, unit) for number, unit in enumerate(every) if isinstance(unit, Tokens)]
    behind = [*(number for number, _ in places[1:]), None]
    for (place, unit), following in zip(places, behind, strict=False):
        start, stop = unit.readers
        yield _Reduction(
            unit.name,
            unit.attention.name,
            # The attention in front of the next one computes with what this one leaves.
            tuple(other.name for other in every[place + 1 : following]),
            unit.number,
            calls[places[0][1].attention.name][0][0],
            None if unit.reduction is None else unit.reduction.kept,
            unit.least,
            (0 if stop is None else stop) - start,
        )
