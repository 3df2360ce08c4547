"""Networks, registered in :data:`mcf_mm.registry.MODELS`."""

from mcf_mm.models.backbones import SlimVisionTransformer, YOLOSVisionTransformer
from mcf_mm.models.dense_heads import YOLOSHead
from mcf_mm.models.detectors import YOLOS

__all__ = ['YOLOS', 'SlimVisionTransformer', 'YOLOSHead', 'YOLOSVisionTransformer']
