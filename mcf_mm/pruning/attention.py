"""Attention of pruned networks: any number of heads, of q/k and of v channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcf_mm.pruning.adopt import Adopted, adopted_class
from mcf_mm.pruning.layers import ALIGNMENT, is_recorded


class SlimAttention(Adopted, nn.Module):
    """Multi-head self-attention with any number of heads, q/k and v channels.

    It takes the place of a library's class: :meth:`adopt` gives an attention a class that computes
    the same from the same parts, so parameters, names, hooks and optimizer stay. What surgery has
    left is in the buffer ``sizes`` (heads, q/k channels and v channels of a head), for the shapes
    of the weights do not tell; a dense attention has no such buffer. The scale of the softmax
    stays that of the dense network.

    Subclasses say what a library calls the parts and what its forward takes.
    """

    #: Names of the layers that give query, key and value: one for all or one for each.
    qkv_names: tuple[str, ...] = ('qkv',)
    #: Name of the output projection.
    proj_name = 'proj'
    #: Name of the number of heads.
    heads_name = 'num_heads'
    #: Parameters with a column for each head.
    per_head_names: tuple[str, ...] = ()
    #: Other parameters that it may have, none of which depends on the sizes.
    other_names: tuple[str, ...] = ()
    #: What its forward takes.
    forward_names: tuple[str, ...] = ('x',)

    # Set by adopt(): heads, q/k and v channels of a head, now and in the dense network, and what
    # query times key is multiplied with.
    slim: tuple[int, int, int]
    dense: tuple[int, int, int]
    scaling: float

    # Parts of the library's, where it has them.
    q_norm: nn.Module
    k_norm: nn.Module

    @staticmethod
    def layout_of(module: nn.Module) -> 'type[SlimAttention] | None':
        """The class that computes what ``module`` does, by the names of its parts; or None."""
        adopted = isinstance(module, SlimAttention)
        for layout in LAYOUTS:
            parts = (*layout.qkv_names, layout.proj_name)
            if (
                # An adopted one too: LoRA may have wrapped its layers since.
                all(isinstance(getattr(module, part, None), nn.Linear) for part in parts)
                and (isinstance(module, layout) or not adopted)
                and hasattr(module, layout.heads_name)
                and all(hasattr(module, name) for name in layout.per_head_names)
                and layout.fits(module)
            ):
                return layout
        return None

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Tell apart layouts with equal names of parts."""
        return True

    @classmethod
    def unsupported(cls, module: nn.Module) -> str | None:
        """Why an attention of this layout cannot be pruned, or None."""
        if getattr(module, 'v_shortcut', False):
            return 'its values are added to its output (v_shortcut)'
        known = (*cls.qkv_names, cls.proj_name, *cls.per_head_names, *cls.other_names)
        for name, _ in module.named_parameters():
            if not name.startswith(known):
                return f'it has {name}, of which the core knows nothing'
        heads, qk, v = cls.read_sizes(module)
        layers = [getattr(module, name) for name in cls.qkv_names]
        if sum(layer.out_features for layer in layers) != heads * (2 * qk + v):
            return 'its query, key and value are not of equal width'
        if getattr(module, cls.proj_name).in_features != heads * v:
            return f'{cls.proj_name} does not read the heads alone'
        return None

    @classmethod
    def normalised(cls, module: nn.Module) -> bool:
        """Whether query and key are normalised over the channels of a head."""
        norms = (getattr(module, name, None) for name in ('q_norm', 'k_norm'))
        return any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms)

    @classmethod
    def dense_sizes(cls, module: Any) -> tuple[int, int, int]:
        """Heads, q/k and v channels of a head before any pruning."""
        if isinstance(module, SlimAttention):
            return module.dense
        heads = getattr(module, cls.heads_name)
        channels = getattr(module, cls.proj_name).in_features // heads
        return heads, channels, channels

    @classmethod
    def read_sizes(cls, module: nn.Module) -> tuple[int, int, int]:
        """Heads, q/k and v channels of a head now."""
        return module.slim if isinstance(module, SlimAttention) else cls.dense_sizes(module)

    @classmethod
    def softmax_scale(cls, module: Any) -> float:
        """What query times key is multiplied with, in the class that is replaced."""
        return cls.dense_sizes(module)[1] ** -0.5

    @classmethod
    def adopt(cls, module: Any, sizes: tuple[int, int, int] | None = None) -> None:
        """Give an attention this class and sizes, in place; its parameters fit already.

        Args:
            module: Attention of a library, or one that was adopted before.
            sizes: Heads, q/k and v channels of a head. Defaults to those that it has.
        """
        sizes = sizes or cls.read_sizes(module)
        if not isinstance(module, SlimAttention):
            module.dense, module.scaling = cls.dense_sizes(module), cls.softmax_scale(module)
            module.__class__ = adopted_class(cls, type(module))
        module.slim = tuple(int(size) for size in sizes)
        setattr(module, cls.heads_name, module.slim[0])
        device = getattr(module, cls.proj_name).weight.device
        if module.slim != module.dense:
            module.register_buffer('sizes', torch.tensor(module.slim, device=device))
        elif hasattr(module, 'sizes'):
            del module.sizes
        for name in (*cls.qkv_names, cls.proj_name):
            layer = getattr(module, name)
            layer.out_features, layer.in_features = layer.weight.shape

    def _attend(
        self, x: Tensor, mask: Tensor | None, dropout: float, causal: bool = False
    ) -> Tensor:
        """Attention up to the input of proj, ``(B, N, heads * v)``; N may be fewer tokens."""
        heads, qk, v = self.slim
        layers = [getattr(self, name) for name in self.qkv_names]
        parts = [layer(x) for layer in layers]
        if len(parts) == 1:
            parts = parts[0].split((heads * qk, heads * qk, heads * v), -1)
        query, key, value = (
            part.unflatten(-1, (heads, size)).transpose(1, 2)
            for part, size in zip(parts, (qk, qk, v), strict=True)
        )
        if self.normalised(self):
            query, key = self.q_norm(query), self.k_norm(key)
        if qk != v and not is_recorded(x):
            # Fused kernels want equal widths, and multiples of 8; zeros change nothing.
            width = -(-max(qk, v) // ALIGNMENT) * ALIGNMENT
            query, key, value = (
                F.pad(part, (0, width - part.shape[-1])) for part in (query, key, value)
            )
        dropout = dropout if self.training else 0.0
        x = self._mix(query, key, value, mask, dropout_p=dropout, is_causal=causal)
        x = x[..., :v].transpose(1, 2).flatten(2)
        # A TokenReduction drops tokens before proj.
        reduction = getattr(self, 'reduction', None)
        return x if reduction is None else reduction(query, key, self.scaling, x, mask)

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings
    ) -> Tensor:
        """Values by attention, all ``(B, heads, N, d)``; ``settings`` are those of torch."""
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=self.scaling, **settings
        )


class SlimMultiheadAttention(SlimAttention):
    """In the place of mmpretrain's ``MultiheadAttention``; takes a mask for padding besides."""

    other_names = ('gamma1',)
    forward_names = ('x', 'mask')

    proj: nn.Module
    attn_drop: float
    proj_drop: nn.Module
    gamma1: nn.Module
    out_drop: nn.Module

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return hasattr(module, 'out_drop') and hasattr(module, 'gamma1')

    @classmethod
    def softmax_scale(cls, module: Any) -> float:
        # With a qk_scale mmpretrain calls a function of its own, which divides by its scale.
        given = getattr(module.scaled_dot_product_attention, 'keywords', {}).get('scale')
        return 1 / given if given else super().softmax_scale(module)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends among tokens ``(B, N, C)``; ``mask`` is True where one may be attended to."""
        x = self.proj(self._attend(x, mask, self.attn_drop))
        return self.out_drop(self.gamma1(self.proj_drop(x)))


class SlimTimmAttention(SlimAttention):
    """In the place of timm's ``Attention``."""

    other_names = ('q_norm', 'k_norm')
    forward_names = ('x', 'attn_mask', 'is_causal')

    proj: nn.Module
    attn_drop: nn.Dropout
    proj_drop: nn.Module

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return hasattr(module, 'fused_attn') and not hasattr(module, 'relative_position_bias_table')

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attends among tokens ``(B, N, C)``."""
        return self.proj_drop(self.proj(self._attend(x, attn_mask, self.attn_drop.p, is_causal)))


class SlimWindowAttention(SlimAttention):
    """In the place of the window attention of Swin, in mmpretrain, mmdet and timm."""

    per_head_names = ('relative_position_bias_table',)
    forward_names = ('x', 'mask')

    relative_position_bias_table: nn.Parameter
    relative_position_index: Tensor
    proj: nn.Module
    attn_drop: nn.Dropout
    proj_drop: nn.Module

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return hasattr(module, 'relative_position_index')

    @classmethod
    def softmax_scale(cls, module: Any) -> float:
        return module.scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends inside windows.

        Args:
            x: Tokens by window, ``(B * windows, N, C)``.
            mask: What is added to the scores, ``(windows, N, N)``. Defaults to None.
        """
        tokens = x.shape[1]
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = table.unflatten(0, (tokens, tokens)).permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask[:, None]
            bias = bias.repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        x = self._attend(x, bias.to(x.dtype), self.attn_drop.p)
        return self.proj_drop(self.proj(x))


class SlimSelfAttention(SlimAttention):
    """In the place of the attention of Hugging Face's ViT, DeiT and DINOv2."""

    qkv_names = ('q_proj', 'k_proj', 'v_proj')
    proj_name = 'o_proj'
    heads_name = 'num_attention_heads'
    forward_names = ('hidden_states', 'attention_mask', 'kwargs')

    o_proj: nn.Module
    attention_dropout: float

    @classmethod
    def softmax_scale(cls, module: Any) -> float:
        return module.scaling

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, None]:
        """Attends among tokens ``(B, N, C)``; gives no attention weights."""
        x = self._attend(hidden_states, attention_mask, self.attention_dropout)
        return self.o_proj(x), None


LAYOUTS = (
    SlimMultiheadAttention,
    SlimWindowAttention,
    SlimTimmAttention,
    SlimSelfAttention,
)
