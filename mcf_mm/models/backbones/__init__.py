from mcf_mm.models.backbones.slim_vision_transformer import SlimVisionTransformer
from mcf_mm.models.backbones.yolos_vit import YOLOSVisionTransformer

__all__ = ['SlimVisionTransformer', 'YOLOSVisionTransformer']
