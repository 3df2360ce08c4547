"""Prunable parts of a network: FFNs, attentions, and all of them together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mcf_mm.pruning.attention import SlimAttention
from mcf_mm.pruning.layers import AlignedLinear, SlimLinear
from mcf_mm.pruning.unit import Axis, Place, Unit

if TYPE_CHECKING:
    from mcf_mm.pruning.token_units import Tokens  # which imports this module


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
        return _linear(self, self.fc1_path)

    @property
    def fc2(self) -> nn.Linear:
        """Second linear layer, weight W2 ``(C, H)``."""
        return _linear(self, self.fc2_path)

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


def _linear(unit: Unit, path: str) -> nn.Linear:
    layer = unit.module.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        raise TypeError(
            f'{unit.name}.{path} must be a linear layer, got {type(layer).__name__}: it was '
            'replaced since the units were looked for'
        )
    return layer


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

    kinds: tuple[str, ...] = ('heads', 'qk', 'v')

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
        self.tokens: list[Tokens] = []

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
    def are_pruned(self) -> bool:
        """Whether any of them has lost elements, or drops tokens."""
        return any(unit.is_pruned for unit in self.every)

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Sizes of all units now, ``{unit: {kind: n}}``; of tokens where some are dropped."""
        shown = [*self, *(unit for unit in self.tokens if unit.is_pruned)]
        return {unit.name: unit.sizes for unit in shown}

    @property
    def all_sizes(self) -> dict[str, dict[str, int]]:
        """The same with all units of tokens, whether tokens are dropped there or not."""
        return {unit.name: unit.sizes for unit in self.every}
