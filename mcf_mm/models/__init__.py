"""Networks, registered in :data:`mcf_mm.registry.MODELS`."""

from mcf_mm.models.backbones import SlimVisionTransformer

__all__ = ['SlimVisionTransformer']
