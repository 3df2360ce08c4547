"""Prunable parts of a network: units, their kinds of elements, and where the elements lie."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcf_mm.pruning.attention import SlimAttention
from mcf_mm.pruning.layers import AlignedLinear, SlimLinear


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
        for kind, index in kept.items():
            stays = torch.zeros(self.count(kind), dtype=torch.bool)
            stays[index.cpu()] = True
            for axis in self.axes(kind):
                parameter = self.parameter(axis.parameter)
                if parameter is None:
                    continue
                key = (axis.parameter, axis.dim)
                if key not in masks:
                    masks[key] = torch.ones(parameter.shape[axis.dim], dtype=torch.bool)
                entries = stays.repeat_interleave(axis.block)
                masks[key][axis.offset : axis.offset + len(entries)] &= entries
        keeps: dict[str, tuple[Tensor | None, ...]] = {}
        for (path, dim), mask in masks.items():
            own = list(keeps.get(path, (None,) * self.parameter(path).dim()))
            own[dim] = mask.nonzero().squeeze(1)
            keeps[path] = tuple(own)
        return keeps


class FFN(Unit):
    """One feed-forward network ``fc2(act(fc1(x)))``.

    ``inputs`` are the C' channels that fc1 reads, ``hidden`` the H' units between the layers.

    Args:
        name: Path of the FFN in the model.
        module: The FFN itself.
        fc1_path: Path of the first linear layer inside ``module``.
        fc2_path: Path of the second one.
    """

    kinds = ('inputs', 'hidden')

    def __init__(self, name: str, module: nn.Module, fc1_path: str, fc2_path: str):
        super().__init__(name, module)
        self.fc1_path, self.fc2_path = fc1_path, fc2_path

    @property
    def fc1(self) -> nn.Linear:
        """First linear layer, weight W1 ``(H, C)``, read anew because surgery replaces it."""
        return self.module.get_submodule(self.fc1_path)

    @property
    def fc2(self) -> nn.Linear:
        """Second linear layer, weight W2 ``(C, H)``."""
        return self.module.get_submodule(self.fc2_path)

    @property
    def width(self) -> int:
        """Embedding width C. Pruning never changes the output width, so fc2 tells it."""
        return self.fc2.out_features

    @property
    def is_pruned(self) -> bool:
        """Whether surgery has been here."""
        return isinstance(self.fc1, AlignedLinear)

    @property
    def sizes(self) -> dict[str, int]:
        return {'inputs': self.fc1.in_features, 'hidden': self.fc2.in_features}

    def axes(self, kind: str) -> list[Axis]:
        if kind == 'inputs':
            return [Axis(f'{self.fc1_path}.weight', 1)]
        return [
            Axis(f'{self.fc1_path}.weight', 0),
            Axis(f'{self.fc1_path}.bias', 0),
            Axis(f'{self.fc2_path}.weight', 1),
        ]

    def places(self, kind: str) -> list[Place]:
        return [Place(self.fc1 if kind == 'inputs' else self.fc2, 'input')]

    def consumers(self) -> Iterator[tuple[str, nn.Linear]]:
        yield 'inputs', self.fc1
        yield 'hidden', self.fc2

    def describe(self, kept: Mapping[str, Tensor]) -> None:
        fc1 = self.fc1
        inputs = getattr(fc1, 'inputs', None)
        if 'inputs' in kept:
            index = kept['inputs'].to(fc1.weight.device)
            inputs = index if inputs is None else inputs[index]
        if inputs is not None and len(inputs) == self.width:
            inputs = None  # an FFN that reads all inputs has nothing to gather
        slim = (
            AlignedLinear.from_linear(fc1)
            if inputs is None
            else SlimLinear.from_linear(fc1, inputs)
        )
        parent, _, child = self.fc1_path.rpartition('.')
        setattr(self.module.get_submodule(parent), child, slim)
        self.fc2.in_features = self.fc2.weight.shape[1]


class Attention(Unit):
    """One multi-head self-attention.

    ``heads`` are whole heads, ``qk`` the query and key channels of each head, ``v`` the value
    channels of each head, which proj reads. The elements of ``qk`` and ``v`` are numbered through
    all heads; each head of a layer keeps equally many, or attention would be ragged.

    Args:
        name: Path of the attention in the model.
        module: The attention itself.
        layout: Class of :mod:`mcf_mm.pruning.attention` that computes the same.
    """

    kinds = ('heads', 'qk', 'v')

    def __init__(self, name: str, module: nn.Module, layout: type[SlimAttention]):
        super().__init__(name, module)
        self.layout = layout
        if layout.normalised(module):
            # A norm over the channels of a head is another function with fewer channels.
            self.kinds = ('heads', 'v')
            self.missing = {'qk': 'query and key are normalised over the channels of a head'}

    @property
    def is_pruned(self) -> bool:
        """Whether surgery has been here."""
        return self.layout.read_sizes(self.module) != self.layout.dense_sizes(self.module)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(('heads', 'qk', 'v'), self.layout.read_sizes(self.module), strict=True))

    @property
    def proj(self) -> nn.Linear:
        """The output projection."""
        return getattr(self.module, self.layout.proj_name)

    def groups(self, kind: str) -> int:
        return 1 if kind == 'heads' else self.sizes['heads']

    def axes(self, kind: str) -> list[Axis]:
        heads, qk, v = self.sizes.values()
        block = {'heads': (qk, v), 'qk': (1, 0), 'v': (0, 1)}[kind]
        names = self.layout.qkv_names
        axes = []
        for third, start in enumerate((0, heads * qk, 2 * heads * qk)):
            size = block[third == 2]
            if size:
                path, offset = (names[0], start) if len(names) == 1 else (names[third], 0)
                axes += [Axis(f'{path}.{name}', 0, offset, size) for name in ('weight', 'bias')]
        if block[1]:
            axes.append(Axis(f'{self.layout.proj_name}.weight', 1, 0, block[1]))
        if kind == 'heads':
            axes += [Axis(path, 1) for path in self.layout.per_head_names]
        return axes

    def places(self, kind: str) -> list[Place]:
        heads, qk, _ = self.sizes.values()
        modules = [getattr(self.module, path) for path in self.layout.qkv_names]
        if kind == 'inputs':
            return [Place(modules[0], 'input')]
        if kind != 'qk':
            return [Place(self.proj, 'input')]
        if len(modules) == 1:
            return [Place(modules[0], 'output', 0, 2 * heads * qk)]
        return [Place(module, 'output') for module in modules[:2]]

    def consumers(self) -> Iterator[tuple[str, nn.Linear]]:
        yield 'v', self.proj

    def complete(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = super().complete(kept)
        sizes = self.sizes
        heads = kept.setdefault('heads', torch.arange(sizes['heads']))
        for kind in ('qk', 'v'):
            if kind in kept:
                per_head = torch.bincount(
                    kept[kind].cpu() // sizes[kind], minlength=sizes['heads']
                )[heads.cpu()]
                if int(per_head.min()) != int(per_head.max()) or int(per_head.min()) == 0:
                    raise ValueError(
                        f'{self.name}: each head must keep equally many {kind} channels, at least '
                        f'one, got {per_head.tolist()}'
                    )
                kept[kind] = kept[kind][torch.isin(kept[kind] // sizes[kind], heads.to(kept[kind]))]
        return kept

    def describe(self, kept: Mapping[str, Tensor]) -> None:
        sizes = self.sizes
        heads = len(kept['heads'])
        qk, v = (len(kept[kind]) // heads if kind in kept else sizes[kind] for kind in ('qk', 'v'))
        self.layout.adopt(self.module, (heads, qk, v))


class Units(list[Unit]):
    """Units of a network in the order of the forward pass: FFNs and attentions.

    Attributes:
        left_out: Reason by name, for modules that look like a unit and cannot be pruned.
        tokens: Units of tokens (:class:`~mcf_mm.pruning.token_units.Tokens`), which have no weights
            and which each belong to an attention.
    """

    def __init__(self, units: Sequence[Unit] = (), left_out: Mapping[str, str] | None = None):
        super().__init__(units)
        self.left_out = dict(left_out or {})
        self.tokens: list[Unit] = []

    @property
    def every(self) -> list[Unit]:
        """All units in the order of the forward pass, those of tokens behind their attentions."""
        behind = {unit.attention.name: unit for unit in self.tokens}
        pairs = ((unit, behind.get(unit.name)) for unit in self)
        return [unit for pair in pairs for unit in pair if unit is not None]

    @property
    def by_name(self) -> dict[str, Unit]:
        """All units by name, those of tokens too."""
        return {unit.name: unit for unit in self.every}

    @property
    def ffns(self) -> list[FFN]:
        """The FFNs among them."""
        return [unit for unit in self if isinstance(unit, FFN)]

    @property
    def attentions(self) -> list[Attention]:
        """The attentions among them."""
        return [unit for unit in self if isinstance(unit, Attention)]

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Sizes of all units now, ``{unit: {kind: n}}``; of tokens where some are dropped."""
        shown = [*self, *(unit for unit in self.tokens if unit.is_pruned)]
        return {unit.name: unit.sizes for unit in shown}
