from mcf_mm.models.dense_heads.yolos_head import YOLOSHead

__all__ = ['YOLOSHead']
