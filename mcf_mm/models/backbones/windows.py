"""Attention inside windows for a plain vision transformer, as in ViTDet."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcf_mm.pruning.attention import SlimMultiheadAttention


class WindowedAttention(SlimMultiheadAttention):
    """Multi-head attention of mmpretrain inside windows of a map of patches.

    Each patch attends to the patches of its window and to the extra tokens (class, distillation);
    each extra token attends to all tokens, as in global attention. Windows do not overlap; where
    they do not divide the map, it is padded at the right and the bottom. See section 3 of
    `Exploring Plain Vision Transformer Backbones for Object Detection
    <https://arxiv.org/abs/2203.16527>`_, which has no class token and attends to the padding;
    here nothing does.

    Windows are cut after query, key and value are made, so what layers read and give are the tokens
    of the image in their order. The parameters are those of global attention.

    Attributes:
        window_size: Height and width of a window, in patches.
        num_extra_tokens: Tokens before the patches.
        grid: Height and width of the map in patches; the backbone sets it for each batch.
    """

    window_size: int
    num_extra_tokens: int
    grid: tuple[int, int] | None

    @classmethod
    def put(cls, module: nn.Module, window_size: int, num_extra_tokens: int) -> None:
        """Give a global attention windows, in place; its parameters stay."""
        cls.adopt(module)
        module.window_size, module.num_extra_tokens = window_size, num_extra_tokens
        module.grid = None

    def windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Number of windows down and across, and height and width of one.

        A window is never larger than the map.
        """
        sides = tuple(min(self.window_size, side) for side in self.grid)
        return tuple(-(-all_ // one) for all_, one in zip(self.grid, sides, strict=True)), sides

    def num_pairs(self, num_images: int) -> int:
        """Pairs of query and key that are computed, padding among them."""
        (down, across), (height, width) = self.windows()
        own, extra = height * width, self.num_extra_tokens
        tokens = self.grid[0] * self.grid[1] + extra
        return num_images * (down * across * own * (own + extra) + extra * tokens)

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings
    ) -> Tensor:
        """Attention in windows; all are ``(B, heads, N, d)``."""
        extra, tokens = self.num_extra_tokens, query.shape[2]
        if mask is not None:
            raise ValueError('attention inside windows takes no mask, got one')
        if self.grid is None or tokens != extra + self.grid[0] * self.grid[1]:
            raise ValueError(
                f'attention inside windows got {tokens} tokens for a grid of {self.grid} patches '
                f'and {extra} other tokens: call the backbone, which sets the grid'
            )
        windows, sides = self.windows()
        if windows == (1, 1):
            return super()._mix(query, key, value, None, **settings)
        num_images, heads = query.shape[:2]
        first, patches = query[:, :, :extra], query[:, :, extra:]
        inside = super()._mix(
            self._cut(patches),
            *(
                torch.cat((self._repeat(part[:, :, :extra]), self._cut(part[:, :, extra:])), 2)
                for part in (key, value)
            ),
            self._padding(num_images, query.device),
            **settings,
        )
        # (B * windows, heads, height * width, d) to (B, heads, H * W, d)
        map_ = inside.unflatten(0, (num_images, *windows)).unflatten(4, sides)
        map_ = map_.permute(0, 3, 1, 4, 2, 5, 6).reshape(
            num_images, heads, windows[0] * sides[0], windows[1] * sides[1], -1
        )
        patches = map_[:, :, : self.grid[0], : self.grid[1]].flatten(2, 3)
        if not extra:
            return patches
        first = super()._mix(first, key, value, None, **settings)
        return torch.cat((first, patches), 2)

    def _cut(self, patches: Tensor) -> Tensor:
        """``(B, heads, H * W, d)`` to ``(B * windows, heads, height * width, d)``."""
        (down, across), (height, width) = self.windows()
        map_ = patches.unflatten(2, self.grid)
        right, bottom = across * width - self.grid[1], down * height - self.grid[0]
        if right or bottom:
            map_ = F.pad(map_, (0, 0, 0, right, 0, bottom))
        map_ = map_.unflatten(3, (across, width)).unflatten(2, (down, height))
        # (B, heads, down, height, across, width, d)
        return map_.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)

    def _repeat(self, tokens: Tensor) -> Tensor:
        """``(B, heads, extra, d)``, once for each window."""
        down, across = self.windows()[0]
        return tokens.repeat_interleave(down * across, 0)

    def _padding(self, num_images: int, device: torch.device) -> Tensor | None:
        """True where a key is a token, ``(B * windows, 1, 1, extra + height * width)``."""
        (down, across), (height, width) = self.windows()
        if (down * height, across * width) == self.grid:
            return None
        there = torch.ones(1, 1, self.grid[0] * self.grid[1], 1, device=device, dtype=torch.bool)
        there = self._cut(there)[..., 0]  # (windows, 1, height * width)
        there = F.pad(there, (self.num_extra_tokens, 0), value=True)
        return there.repeat(num_images, 1, 1)[:, None]


class WindowedBlocks:
    """Mixin of :class:`mmpretrain.models.VisionTransformer`: windows in all blocks but a few.

    Args:
        *args: As for the class it is mixed into.
        window_size: Height and width of a window in patches, as 14 in ViTDet. Defaults to None:
            attention is global in all blocks.
        global_blocks: Numbers of the blocks whose attention stays global, from 0. Defaults to
            None: with ``window_size``, the last block of each quarter, ``(2, 5, 8, 11)`` of 12.
        **kwargs: As for the class it is mixed into.

    Raises:
        ValueError: ``window_size`` is not a positive number, or is given for an ``out_type`` that
            gives no map; ``global_blocks`` names no block or is given without ``window_size``.
    """

    def __init__(
        self,
        *args,
        window_size: int | None = None,
        global_blocks: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.window_size, self.global_blocks = window_size, None
        if window_size is None:
            if global_blocks is not None:
                raise ValueError(
                    f'global_blocks={global_blocks!r} says which blocks have no windows: give '
                    'window_size too'
                )
            return
        if not isinstance(window_size, int) or isinstance(window_size, bool) or window_size < 1:
            raise ValueError(
                f'window_size must be a number of patches from 1, or None, got {window_size!r}'
            )
        if self.out_type != 'featmap':
            raise ValueError(
                f"window_size={window_size} needs out_type='featmap', got {self.out_type!r}: "
                'windows are for the maps of detectors'
            )
        if global_blocks is None:
            global_blocks = sorted({self.num_layers * (n + 1) // 4 - 1 for n in range(4)} - {-1})
        bad = [
            block
            for block in global_blocks
            if not isinstance(block, int) or block not in range(self.num_layers)
        ]
        if bad:
            raise ValueError(
                f'global_blocks must be numbers from 0 to {self.num_layers - 1}, got {bad[0]!r}'
            )
        self.global_blocks = tuple(global_blocks)
        for number, layer in enumerate(self.layers):
            if number not in self.global_blocks:
                WindowedAttention.put(layer.attn, window_size, self.num_extra_tokens)
        # A method, not a closure, so that a copy has its own.
        self.patch_embed.register_forward_hook(self._note_grid)

    def _note_grid(self, module: nn.Module, args: tuple, out: tuple) -> None:
        """Tell the attentions how the patches lie."""
        for layer in self.layers:
            if isinstance(layer.attn, WindowedAttention):
                layer.attn.grid = tuple(int(side) for side in out[1])
