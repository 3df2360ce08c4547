"""T2T-ViT as it was published, with an own size for each unit."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmpretrain.models import T2T_ViT
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor

from mcf_mm.models.slim import SlimUnits
from mcf_mm.pruning.attention import SlimMultiheadAttention
from mcf_mm.registry import MODELS


class TokenAttention(MultiheadAttention):
    """Attention inside tokens-to-token: one head, other widths in and out, values added."""

    def forward(self, x: Tensor) -> Tensor:
        """Attends among tokens.

        Args:
            x: Tokens, ``(B, N, input_dims)``.

        Returns:
            Tokens, ``(B, N, embed_dims)``.
        """
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        dropout = self.attn_drop if self.training else 0.0
        # The input is wider than a head, and the published scale is that of the input.
        x = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=self.input_dims**-0.5
        )
        x = self.out_drop(self.gamma1(self.proj_drop(self.proj(x.squeeze(1)))))
        return value.squeeze(1) + x


@MODELS.register_module()
class SlimT2T_ViT(SlimUnits, T2T_ViT):
    """T2T-ViT with pruned FFNs and attentions, and with the softmax of the publication.

    ``T2T_ViT`` of mmpretrain divides query times key by a scale where the published code
    multiplies with it, so the published weights compute something else there. Here query times
    key is multiplied with ``(input_dims // num_heads) ** -0.5``, see `Tokens-to-Token ViT
    <https://arxiv.org/abs/2101.11986>`_ and its code. A network that was trained as mmpretrain's
    ``T2T_ViT`` is another function and does not fit here, though its weights load.

    The two attentions in tokens-to-token add their values to the output and are not pruned; their
    FFNs are the first two units.

    Args:
        *args: As for :class:`mmpretrain.models.T2T_ViT` and :class:`mcf_mm.models.slim.SlimUnits`.
        layer_cfgs: As there; a ``qk_scale`` is what query times key is multiplied with. Defaults
            to None.
        **kwargs: As ``*args``.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimT2T_ViT', img_size=224, embed_dims=384, num_layers=14,
        ...     t2t_cfg=dict(token_dims=64, use_performer=False), sizes=dict(heads=4),
        ...     layer_cfgs=dict(num_heads=6, feedforward_channels=3 * 384))
    """

    def __init__(self, *args, layer_cfgs: dict | Sequence[dict] | None = None, **kwargs):
        super().__init__(*args, layer_cfgs=layer_cfgs or {}, **kwargs)
        module = self.tokens_to_token
        self.embed_dims = module.embed_dims
        for layer in (module.attention1, module.attention2):
            layer.attn.__class__ = TokenAttention
        for index, layer in enumerate(self.encoder):
            own = layer_cfgs[index] if isinstance(layer_cfgs, Sequence) else layer_cfgs or {}
            SlimMultiheadAttention.adopt(layer.attn)
            channels = SlimMultiheadAttention.dense_sizes(layer.attn)[1]
            layer.attn.scaling = own.get('qk_scale') or channels**-0.5
