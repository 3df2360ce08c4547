"""Multipliers on elements: 0 and 1 in a search, learnable scores, folded into the weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.unit import Place, Unit
from mcf_mm.pruning.units import FFN, Attention


class Gates:
    """Multiplies elements of units with numbers, without a change of the network.

    The numbers are no part of the network: its state dict stays that of the plain one. Hooks on
    the layers multiply, so no forward is rewritten.

    Args:
        units: Units of a network.
        kinds: Kinds that get gates, where a unit has them. Defaults to all but tokens, which have
            none.

    Attributes:
        values: One number for each element, ``(count,)``, by unit name and kind; all 1 at first.
            Change them in place, or put parameters in their stead.

    Example:
        >>> gates = Gates(find_units(model), ['hidden'])
        >>> gates.values['blocks.0.mlp', 'hidden'][7] = 0
        >>> with gates:
        ...     model(images)  # as if hidden unit 7 of the first block were not there
        >>> gates.fold()  # now its weights are zero
    """

    def __init__(self, units: Iterable[Unit], kinds: Iterable[str] | None = None):
        self.units = {unit.name: unit for unit in units}
        wanted = None if kinds is None else set(kinds)
        self.values: dict[tuple[str, str], Tensor] = {}
        for unit in self.units.values():
            for kind in unit.kinds:
                if kind == 'tokens':
                    continue  # images choose them, no number is multiplied
                if wanted is None or kind in wanted:
                    weight = next(unit.module.parameters())
                    ones = torch.ones(unit.count(kind), device=weight.device)
                    self.values[unit.name, kind] = ones
        self._handles: list = []

    def set_structure(self, structure: Structure) -> None:
        """Set the gates of what ``structure`` keeps to 1 and all others to 0.

        Raises:
            ValueError: It names a unit or a kind without gates.
        """
        for name in structure:
            if name not in self.units:
                raise ValueError(f'no unit {name!r} has gates; {[*self.units]} have')
        for gate in self.values.values():
            gate.data.fill_(1)
        for name, kinds in structure.items():
            for kind, index in self.units[name].complete(kinds).items():
                if (name, kind) not in self.values:
                    if len(index) == self.units[name].count(kind):
                        continue
                    raise ValueError(f'{name} has no gates for {kind}')
                gate = self.values[name, kind].data
                gate.fill_(0)
                gate[index.to(gate.device)] = 1

    def attach(self) -> 'Gates':
        """Multiply from now on.

        Raises:
            RuntimeError: They are attached already.
        """
        if self._handles:
            raise RuntimeError('these gates are attached already')
        for (name, kind), _ in self.values.items():
            unit = self.units[name]
            # Query times key: one of the two is enough.
            for place in unit.places(kind)[:1]:
                self._handles.append(self._hook(unit, kind, place))
        return self

    def remove(self) -> None:
        """Multiply no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> 'Gates':
        return self.attach()

    def __exit__(self, *_) -> None:
        self.remove()

    def _hook(self, unit: Unit, kind: str, place: Place):
        key = (unit.name, kind)

        def factor(values: Tensor) -> Tensor:
            gate = self.values[key].to(values)
            if kind == 'heads':
                gate = gate.repeat_interleave(unit.sizes['v'])
            missing = values.shape[-1] - len(gate)
            if kind == 'inputs' and isinstance(unit, FFN):
                index = getattr(unit.module.get_submodule(unit.fc1_path), 'inputs', None)
                if index is not None:
                    full = gate.new_ones(values.shape[-1])
                    return full.scatter(0, index, gate)
            return gate if not missing else torch.cat((gate, gate.new_ones(missing)))

        if place.side == 'output':
            return place.module.register_forward_hook(
                lambda module, args, output: output * factor(output)
            )
        return place.module.register_forward_pre_hook(
            lambda module, args: (args[0] * factor(args[0]), *args[1:])
        )

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the numbers into the weights and set them to 1; the function stays the same."""
        for (name, kind), gate in self.values.items():
            unit = self.units[name]
            for axis in _folded(unit, kind):
                parameter = unit.parameter(axis.parameter)
                if parameter is None:
                    continue
                numbers = gate.detach().to(parameter).repeat_interleave(axis.block)
                entries = parameter.data.narrow(axis.dim, axis.offset, len(numbers))
                shape = [1] * parameter.dim()
                shape[axis.dim] = -1
                entries.mul_(numbers.view(shape))
            gate.data.fill_(1)


def _folded(unit: Unit, kind: str):
    """The axes that take the numbers: those behind the place where gates multiply."""
    axes = unit.axes(kind)
    if isinstance(unit, Attention):
        if kind == 'qk':
            return axes[:2]  # weight and bias of the query
        return [axis for axis in axes if axis.parameter == f'{unit.layout.proj_name}.weight']
    return [axis for axis in axes if axis.dim == 1]


def mask(units: Mapping[str, Unit] | Iterable[Unit], structure: Structure) -> Gates:
    """Gates, not attached yet, that do what a cut to ``structure`` would do."""
    units = list(units.values()) if isinstance(units, Mapping) else list(units)
    gates = Gates([unit for unit in units if unit.name in structure])
    gates.set_structure(structure)
    return gates
