from mcf_mm.models.backbones.slim_swin_transformer import SlimSwinTransformer
from mcf_mm.models.backbones.slim_vision_transformer import (
    SlimDistilledVisionTransformer,
    SlimVisionTransformer,
)
from mcf_mm.models.backbones.yolos_vit import YOLOSVisionTransformer

__all__ = [
    'SlimDistilledVisionTransformer',
    'SlimSwinTransformer',
    'SlimVisionTransformer',
    'YOLOSVisionTransformer',
]
