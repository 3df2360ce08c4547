"""DeiT-Tiny pruned by MCF (p = 0.4) on the Tiny-ImageNet subset, least squares at surgery."""

_base_ = './deit-tiny_2cpu-44e_tiny-imagenet.py'

custom_hooks = [
    dict(type='mcf_mm.MCFPruningHook', ratio=0.4, compensation='least_squares'),
]
