"""Blocks that can drop tokens, as units of a network."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mcf_mm.pruning.attention import SlimMultiheadAttention, SlimTimmAttention
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.tokens import ReducingBlock, TokenReduction, reduce_tokens
from mcf_mm.pruning.unit import Axis, Unit
from mcf_mm.pruning.units import Attention, Units


class Tokens(Unit):
    """The tokens that stay behind the attention of one block; the others are fused into one.

    Which they are each image decides when the network runs, so ``structure`` keeps ranks: 0 is the
    token that is attended to most.

    Args:
        name: Path of the block in the model.
        block: The block.
        attention: Its attention.
        number: Tokens of an image of the size that the network is for, all of them.
        first: See :class:`~mcf_mm.pruning.tokens.TokenReduction`.
        last: The same.
        readers: The same.
        before: The unit before it that may drop tokens; None for the first. Defaults to None.
    """

    kinds = ('tokens',)

    def __init__(
        self,
        name: str,
        block: nn.Module,
        attention: Attention,
        number: int,
        first: int,
        last: int,
        readers: tuple[int, int | None],
        before: 'Tokens | None' = None,
    ):
        super().__init__(name, block)
        self.attention, self.before = attention, before
        self.number, self.first, self.last, self.readers = number, first, last, readers

    @property
    def reduction(self) -> TokenReduction | None:
        """What drops tokens there now, or None."""
        return getattr(self.attention.module, 'reduction', None)

    @property
    def least(self) -> int:
        """Fewest tokens that can stay: the protected ones, and one more."""
        return self.first + self.last + 1

    @property
    def is_pruned(self) -> bool:
        """Whether tokens are dropped here."""
        return self.reduction is not None

    @property
    def arriving(self) -> int:
        """Tokens that arrive at this block now, of an image of the size it is for."""
        return self.number if self.before is None else self.before.leaving

    @property
    def leaving(self) -> int:
        """Tokens that leave it now, the fused one among them."""
        return self.arriving if self.reduction is None else self.reduction.kept + 1

    @property
    def sizes(self) -> dict[str, int]:
        return {'tokens': self.arriving if self.reduction is None else self.reduction.kept}

    def axes(self, kind: str) -> list[Axis]:
        return []  # no parameter has an entry for each token

    def consumers(self) -> Iterator[tuple[str, nn.Linear]]:
        return iter(())

    def fewest(self, kind: str) -> int:
        return self.least

    def keep(self, number: int) -> None:
        """Let so many tokens stay from now on, of those that arrive.

        Raises:
            ValueError: They are more than arrive, or fewer than are protected.
        """
        if not self.least <= number <= self.arriving:
            raise ValueError(
                f'tokens of {self.name} is {number}, it must be from {self.least} to '
                f'{self.arriving}, as many as arrive there'
            )
        reduction = None
        if number < self.arriving:
            self.attention.layout.adopt(self.attention.module)
            reduction = TokenReduction(number, self.arriving, self.first, self.last, self.readers)
        reduce_tokens(self.module, reduction)

    def describe(self, kept: Mapping[str, Tensor]) -> None:
        if 'tokens' in kept:
            self.keep(len(kept['tokens']))


def token_flow(units: Units, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """How many tokens arrive at each unit of tokens and how many leave it, for some sizes.

    Args:
        units: Units of a network.
        sizes: Tokens that stay by unit; units that are not named stay as they are.

    Raises:
        ValueError: More are to stay than arrive, or fewer than are protected.
    """
    flow: dict[str, tuple[int, int]] = {}
    arriving: int | None = None
    for unit in units.tokens:
        arriving = unit.number if arriving is None else arriving
        kept = sizes.get(unit.name, {}).get('tokens')
        if kept is None:
            kept = arriving if unit.reduction is None else unit.reduction.kept
        if not unit.least <= kept <= arriving:
            raise ValueError(
                f'tokens of {unit.name} is {kept}, it must be from {unit.least} to {arriving}, as '
                f'many as arrive there'
            )
        leaving = kept if kept == arriving else kept + 1
        flow[unit.name] = arriving, leaving
        arriving = leaving
    return flow


def add_token_units(model: nn.Module, units: Units) -> None:
    """Find the units of tokens, each of which belongs to an attention.

    They are a block behind each quarter of a plain vision transformer, as blocks 4, 7 and 10 of 12
    in the paper, if nothing but class or detection tokens is read of its result. Otherwise the
    attentions say why they are missing.
    """
    attentions = {unit.name: unit for unit in units.attentions}
    for name, owner in model.named_modules():
        for path, blocks in owner.named_children():
            if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
                continue
            if any(ReducingBlock.layout_of(block) is None for block in blocks):
                continue
            stem = f'{name}.{path}' if name else path
            paths = [f'{stem}.{number}.attn' for number in range(len(blocks))]
            own = [attentions[path] for path in paths if path in attentions]
            reason = _why_not(owner, own, len(blocks))
            if reason is not None:
                for unit in own:
                    unit.missing['tokens'] = reason
                continue
            before = None
            for number in sorted({len(blocks) * quarter // 4 for quarter in (1, 2, 3)}):
                before = Tokens(
                    f'{stem}.{number}', blocks[number], own[number], *_tokens_of(owner), before
                )
                units.tokens.append(before)


def _why_not(owner: nn.Module, attentions: Sequence[Attention], blocks: int) -> str | None:
    """Why a network of so many blocks cannot drop tokens, or None."""
    if len(attentions) < blocks:
        return 'an attention of its blocks cannot be pruned'
    if any(unit.layout not in (SlimMultiheadAttention, SlimTimmAttention) for unit in attentions):
        return 'its attention is not one that tokens can be dropped in'
    embed = getattr(owner, 'pos_embed', None)
    if not isinstance(embed, Tensor) or embed.dim() != 3:
        return 'it has no position embedding that tells how many tokens there are'
    if hasattr(owner, 'num_det_tokens'):
        return None
    if (pool := getattr(owner, 'global_pool', 'token')) != 'token':
        return f'its patches are read (global_pool={pool!r}), not the class token alone'
    if not hasattr(owner, 'global_pool'):
        if (kind := getattr(owner, 'out_type', None)) != 'cls_token':
            return f'its patches are read (out_type={kind!r}), not the class token alone'
        if len(getattr(owner, 'out_indices', (0,))) > 1:
            return 'the results of several blocks are read (out_indices)'
    return None


def _tokens_of(owner: Any) -> tuple[int, int, int, tuple[int, int | None]]:
    """Number of tokens, protected ones at either end, and those whose attention counts."""
    number = owner.pos_embed.shape[1]
    if hasattr(owner, 'num_det_tokens'):
        return number, 1, owner.num_det_tokens, (-owner.num_det_tokens, None)
    if hasattr(owner, 'global_pool'):  # timm
        first = owner.num_prefix_tokens
        if getattr(owner, 'no_embed_class', False):
            number += first
        readers = 2 if hasattr(owner, 'head_dist') else 1
        return number, first, 0, (0, readers)
    first = getattr(owner, 'num_extra_tokens', 1)
    return number, first, 0, (0, first)
