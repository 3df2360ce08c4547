from mcf_mm.models.detectors.yolos import YOLOS

__all__ = ['YOLOS']
