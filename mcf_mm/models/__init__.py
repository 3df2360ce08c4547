"""Networks, registered in :data:`mcf_mm.registry.MODELS`."""

from mcf_mm.models.backbones import (
    SlimDistilledVisionTransformer,
    SlimSwinTransformer,
    SlimT2T_ViT,
    SlimVisionTransformer,
    YOLOSVisionTransformer,
)
from mcf_mm.models.dense_heads import YOLOSHead
from mcf_mm.models.detectors import YOLOS
from mcf_mm.models.necks import SimpleFeaturePyramid
from mcf_mm.models.slim_model import slim_model

__all__ = [
    'YOLOS',
    'SimpleFeaturePyramid',
    'SlimDistilledVisionTransformer',
    'SlimSwinTransformer',
    'SlimT2T_ViT',
    'SlimVisionTransformer',
    'YOLOSHead',
    'YOLOSVisionTransformer',
    'slim_model',
]
