from mcf_mm.models.backbones.slim_swin_transformer import SlimSwinTransformer
from mcf_mm.models.backbones.slim_t2t_vit import SlimT2T_ViT
from mcf_mm.models.backbones.slim_vision_transformer import (
    SlimDistilledVisionTransformer,
    SlimVisionTransformer,
)
from mcf_mm.models.backbones.yolos_vit import YOLOSVisionTransformer

__all__ = [
    'SlimDistilledVisionTransformer',
    'SlimSwinTransformer',
    'SlimT2T_ViT',
    'SlimVisionTransformer',
    'YOLOSVisionTransformer',
]
