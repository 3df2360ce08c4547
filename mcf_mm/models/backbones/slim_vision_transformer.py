"""mmpretrain's VisionTransformers with an own size for each feed-forward network."""

from mmpretrain.models import DistilledVisionTransformer, VisionTransformer

from mcf_mm.models.ffn_sizes import SlimFFNs
from mcf_mm.registry import MODELS


@MODELS.register_module()
class SlimVisionTransformer(SlimFFNs, VisionTransformer):
    """Vision Transformer whose FFNs read C' of C inputs and have H' hidden units.

    Arguments are those of :class:`mmpretrain.models.VisionTransformer` and of
    :class:`mcf_mm.models.ffn_sizes.SlimFFNs`.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimVisionTransformer', arch='deit-small', sizes='auto',
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """


@MODELS.register_module()
class SlimDistilledVisionTransformer(SlimFFNs, DistilledVisionTransformer):
    """The same for DeiT with a distillation token.

    Arguments are those of :class:`mmpretrain.models.DistilledVisionTransformer` and of
    :class:`mcf_mm.models.ffn_sizes.SlimFFNs`.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimDistilledVisionTransformer', arch='deit-small', sizes='auto',
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """
