"""Fewer tokens: those that are attended to stay, the others become one.

Behind the attention of a few blocks the tokens that the class token attends to most are kept and
the rest is fused into one token more, as in `Multi-Dimensional Model Compression of Vision
Transformer <https://arxiv.org/abs/2201.00043>`_. Each image chooses its own tokens, so nothing
depends on the other images of a batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.adopt import Adopted, adopted_class, original_class
from mcf_mm.pruning.layers import is_recorded


@dataclass
class Choice:
    """Which tokens of a batch stay.

    Attributes:
        index: Tokens that stay, ascending in each image, ``(B, K)``.
        weights: Share of each token in the fused one, ``(B, N)``; zero for those that stay.
        last: How many of those that stay lie behind the fused token.
        mask: Which tokens are no padding then, bool ``(B, 1, 1, K + 1)``; None where all are.
    """

    index: Tensor
    weights: Tensor
    last: int
    mask: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """``(B, N, C)``, or ``(1, N, C)`` for all images, to ``(B, K + 1, C)``."""
        x = x.expand(self.index.shape[0], -1, -1)  # not len(): a constant in an exported graph
        kept = x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))
        fused = (self.weights.to(x)[..., None] * x).sum(1, keepdim=True)
        behind = kept.shape[1] - self.last
        return torch.cat((kept[:, :behind], fused, kept[:, behind:]), 1)


class TokenReduction(nn.Module):
    """Chooses tokens inside an attention and drops the others before its output projection.

    The projection is linear, so the mean of the dropped tokens can be taken before it: the function
    is that of a reduction between attention and FFN, and the projection costs less.

    Args:
        kept: Tokens that stay of ``of``, the protected ones among them, the fused one not.
        of: Tokens that arrive. Of another number, as images of another size have it, the same
            share stays, rounded down.
        first: Tokens at the beginning that always stay, such as the class token.
        last: Tokens at the end that always stay, such as the detection tokens of YOLOS.
        readers: First and last plus one of the tokens whose attention counts; negative ones are
            numbered from the end, where None is the end itself.

    Attributes:
        tokens: ``kept`` and ``of``, in the state dict.
        choice: What the last forward pass has chosen; None where all tokens stay.
    """

    tokens: Tensor

    def __init__(self, kept: int, of: int, first: int, last: int, readers: tuple[int, int | None]):
        super().__init__()
        self.kept, self.of = int(kept), int(of)
        self.first, self.last, self.readers = first, last, readers
        self.register_buffer('tokens', torch.tensor([self.kept, self.of]))
        self.choice: Choice | None = None

    def extra_repr(self) -> str:
        return f'{self.kept} of {self.of}'

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'choice': None}  # of a batch, not of the network

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # All shapes fit whatever the numbers are: without this, others would be passed over.
        told = state_dict.get(f'{prefix}tokens')
        if told is not None and told.tolist() != [self.kept, self.of]:
            raise ValueError(
                f'{prefix}tokens: the checkpoint keeps {" of ".join(map(str, told.tolist()))} '
                f'tokens, the network {self.kept} of {self.of}: give the network the sizes of the '
                'checkpoint'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def number(self, arriving: int) -> int:
        """How many of the tokens that arrive stay, the fused one not among them."""
        return max(arriving * self.kept // self.of, self.first + self.last + 1)

    def forward(
        self, query: Tensor, key: Tensor, scaling: float, x: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Drop tokens of the attention's result.

        Args:
            query: Queries, ``(B, heads, N, d)``.
            key: Keys, of the same shape.
            scaling: What query times key is multiplied with.
            x: Result of attention, ``(B, N, C)``.
            mask: True for the tokens that are no padding, ``(B, 1, 1, N)``; padding lies behind the
                patches. None where there is none.

        Returns:
            ``(B, K + 1, C)``: the tokens that stay, and before the last ``last`` of them the mean
            of the others.
        """
        self.choice = None
        arriving = x.shape[1]
        if mask is None and self.number(arriving) >= arriving:
            return x
        with torch.no_grad():
            rows = query[:, :, self.readers[0] : self.readers[1]].float()
            scores = rows @ key.float().mT * scaling
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            received = scores.softmax(-1).mean((1, 2))  # (B, N)
            self.choice = self._choose(received, mask)
        return self.choice.apply(x)

    def _choose(self, received: Tensor, mask: Tensor | None) -> Choice:
        """The tokens with the largest attention, and the protected ones."""
        stop = received.shape[1] - self.last
        middle = received[:, self.first : stop]
        if mask is None:
            number = self.number(received.shape[1]) - self.first - self.last
            if is_recorded(received):  # exporters know no stable sort
                chosen = middle.topk(number, 1).indices
            else:
                chosen = middle.argsort(dim=1, descending=True, stable=True)[:, :number]
            chosen = chosen.sort(1).values
            valid, there = None, torch.ones_like(middle, dtype=torch.bool)
        else:
            there = mask[:, 0, 0, self.first : stop]
            tokens = there.sum(1) + self.first + self.last
            numbers = (tokens * self.kept // self.of).clamp(min=self.first + self.last + 1)
            numbers = torch.minimum(numbers, tokens) - self.first - self.last
            order = middle.masked_fill(~there, -1).argsort(dim=1, descending=True, stable=True)
            valid = torch.arange(int(numbers.max()), device=order.device) < numbers[:, None]
            end = middle.shape[1]
            chosen = order[:, : valid.shape[1]].masked_fill(~valid, end).sort(1).values
            chosen = chosen.clamp(max=end - 1)  # behind those that stay, masked
        stays = torch.zeros_like(there)
        if valid is None:
            stays.scatter_(1, chosen, True)
        else:
            stays = (stays.long().scatter_add_(1, chosen, valid.long())) > 0
        dropped = (there & ~stays).to(received)
        fused = dropped.sum(1, keepdim=True)
        weights = torch.zeros_like(received)
        weights[:, self.first : stop] = dropped / fused.clamp(min=1)
        number_of_images, device = received.shape[0], received.device
        first = torch.arange(self.first, device=device).expand(number_of_images, -1)
        last = torch.arange(stop, received.shape[1], device=device).expand(number_of_images, -1)
        index = torch.cat((first, chosen + self.first, last), 1)
        if valid is None:
            return Choice(index, weights, self.last)
        left = torch.ones_like(first, dtype=torch.bool), valid, fused > 0
        new = torch.cat((*left, torch.ones_like(last, dtype=torch.bool)), 1)
        return Choice(index, weights, self.last, new[:, None, None])


class ReducingBlock(Adopted):
    """Encoder block whose attention has a :class:`TokenReduction`; it takes a library's place.

    Subclasses say what a library calls the parts and how it puts them together.
    """

    prefix = 'Reducing'
    part_names: tuple[str, ...] = ()

    # An attention of a library that was given a class of mcf_mm.pruning.attention, and a reduction.
    attn: Any

    @staticmethod
    def layout_of(block: nn.Module) -> 'type[ReducingBlock] | None':
        """The class that computes what ``block`` does, by the names of its parts; or None."""
        for layout in BLOCKS:
            if all(isinstance(getattr(block, name, None), nn.Module) for name in layout.part_names):
                return layout
        return None

    @classmethod
    def reduce(cls, block: Any, reduction: TokenReduction | None) -> None:
        """Put a reduction into the attention of a block, or take it out, in place."""
        if reduction is None:
            if isinstance(block, ReducingBlock):
                block.__class__ = original_class(block)
            block.attn.reduction = None
            return
        if not isinstance(block, ReducingBlock):
            block.__class__ = adopted_class(cls, type(block))
        block.attn.reduction = reduction.to(block.attn.proj.weight.device)

    def _left(self, x: Tensor) -> Tensor:
        """The residual stream of the tokens that stay; call it behind the attention."""
        choice = self.attn.reduction.choice
        return x if choice is None else choice.apply(x)


class ReducingEncoderLayer(ReducingBlock):
    """In the place of mmpretrain's encoder layers."""

    part_names = ('ln1', 'attn', 'ln2', 'ffn')

    ln1: nn.Module
    ln2: nn.Module
    ffn: nn.Module

    def forward(self, x: Tensor, *args) -> Tensor:
        """Attention, reduction, FFN: ``(B, N, C)`` to ``(B, N', C)``."""
        attended = self.attn(self.ln1(x), *args)
        x = self._left(x) + attended
        return self.ffn(self.ln2(x), identity=x)


class ReducingTimmBlock(ReducingBlock):
    """In the place of timm's ``Block``."""

    part_names = ('norm1', 'attn', 'ls1', 'drop_path1', 'norm2', 'mlp', 'ls2', 'drop_path2')

    norm1: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attention, reduction, FFN: ``(B, N, C)`` to ``(B, N', C)``."""
        if attn_mask is not None or is_causal:
            raise ValueError('a block that drops tokens takes no attn_mask, got one')
        attended = self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = self._left(x) + attended
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


BLOCKS = (ReducingEncoderLayer, ReducingTimmBlock)


def reduce_tokens(block: nn.Module, reduction: TokenReduction | None) -> None:
    """Put a reduction into the attention of a block, or take it out, in place.

    Raises:
        TypeError: No class here computes what the block does.
    """
    layout = ReducingBlock.layout_of(block)
    if layout is None:
        raise TypeError(f'tokens cannot be dropped in a block of class {type(block).__name__}')
    layout.reduce(block, reduction)
