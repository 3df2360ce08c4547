"""What every unit is: kinds of elements, where they lie in parameters and where they are seen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Axis:
    """Where the elements of a kind lie in one parameter.

    Element ``e`` takes the entries ``offset + e * block`` to ``offset + (e + 1) * block - 1``
    along ``dim``: a head is a block of rows of qkv and a block of columns of proj.

    Attributes:
        parameter: Path of the parameter inside the unit's module.
        dim: Dimension of the parameter.
        offset: Entry where element 0 begins. Defaults to 0.
        block: Entries of one element. Defaults to 1.
    """

    parameter: str
    dim: int
    offset: int = 0
    block: int = 1


@dataclass(frozen=True)
class Place:
    """Where the values of a kind are seen while images stream by.

    Attributes:
        module: The linear layer, inside the unit.
        side: ``'input'`` or ``'output'`` of that layer.
        start: First channel. Defaults to 0.
        stop: Channel after the last one; None for all. Defaults to None.
    """

    module: nn.Module
    side: str
    start: int = 0
    stop: int | None = None


class Unit:
    """A prunable part of a network.

    Attributes:
        name: Path of the unit in the model, such as ``'backbone.layers.3.ffn'``.
        module: The module at that path.
        kinds: Kinds of elements that can be pruned.
        missing: Reason by kind, for kinds of its class that this one lacks.
    """

    kinds: tuple[str, ...] = ()

    def __init__(self, name: str, module: nn.Module):
        self.name, self.module = name, module
        self.missing: dict[str, str] = {}

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.name!r}, {self.sizes})'

    @property
    def is_pruned(self) -> bool:
        """Whether surgery has been here."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, int]:
        """Number of elements of each kind now; of q/k and v channels, in each head."""
        raise NotImplementedError

    def groups(self, kind: str) -> int:
        """In how many groups the elements lie, each of which keeps equally many."""
        return 1

    def count(self, kind: str) -> int:
        """Number of elements of a kind that are scored and indexed, over all groups."""
        return self.sizes[kind] * self.groups(kind)

    def fewest(self, kind: str) -> int:
        """Fewest elements of a kind that can stay; of q/k and v channels, in each head."""
        return 1

    def axes(self, kind: str) -> list[Axis]:
        """Where the elements of a kind lie in the unit's parameters."""
        raise NotImplementedError

    def places(self, kind: str) -> list[Place]:
        """Where the values of a kind are seen; several are put side by side."""
        raise NotImplementedError

    def consumers(self) -> Iterator[tuple[str, nn.Linear]]:
        """Linear layers that read pruned elements, each with the kind that it reads."""
        raise NotImplementedError

    def describe(self, kept: Mapping[str, Tensor]) -> None:
        """Bring the modules in line with parameters that were cut to ``kept``."""
        raise NotImplementedError

    def parameter(self, path: str) -> nn.Parameter | None:
        """The parameter at ``path``; None where the layer has none, such as a bias."""
        parent, _, name = path.rpartition('.')
        return getattr(self.module.get_submodule(parent), name)

    def complete(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Check indices to keep, and bring them into one form.

        Args:
            kept: Ascending indices by kind.

        Raises:
            ValueError: A kind is unknown, or indices are out of range or unequal over the groups.
        """
        for kind, index in kept.items():
            if kind not in self.kinds:
                raise ValueError(f'{self.name} has no {kind!r}: it has {list(self.kinds)}')
            if int(index[-1]) >= self.count(kind):
                raise ValueError(
                    f'{self.name} has {self.count(kind)} {kind}, numbered from 0; the structure '
                    f'keeps number {int(index[-1])}'
                )
        return dict(kept)

    def keeps(self, kept: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, ...]]:
        """Which entries of each parameter stay.

        Args:
            kept: Ascending indices by kind, see :meth:`complete`.

        Returns:
            Indices along each dimension, None for all, by path of the parameter. Where several
            kinds lie along one dimension an entry stays that all of them keep.
        """
        masks: dict[tuple[str, int], Tensor] = {}
        dims: dict[str, int] = {}
        for kind, index in kept.items():
            stays = torch.zeros(self.count(kind), dtype=torch.bool)
            stays[index.cpu()] = True
            for axis in self.axes(kind):
                parameter = self.parameter(axis.parameter)
                if parameter is None:
                    continue
                dims[axis.parameter] = parameter.dim()
                key = (axis.parameter, axis.dim)
                if key not in masks:
                    masks[key] = torch.ones(parameter.shape[axis.dim], dtype=torch.bool)
                entries = stays.repeat_interleave(axis.block)
                masks[key][axis.offset : axis.offset + len(entries)] &= entries
        keeps: dict[str, tuple[Tensor | None, ...]] = {}
        for (path, dim), mask in masks.items():
            own = list(keeps.get(path, (None,) * dims[path]))
            own[dim] = mask.nonzero().squeeze(1)
            keeps[path] = tuple(own)
        return keeps
