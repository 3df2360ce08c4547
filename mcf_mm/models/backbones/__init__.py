from mcf_mm.models.backbones.slim_vision_transformer import SlimVisionTransformer

__all__ = ['SlimVisionTransformer']
