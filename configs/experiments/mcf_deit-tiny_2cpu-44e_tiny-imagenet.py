"""DeiT-Tiny, fine-tuned, pruned by MCF (p = 0.4) on the Tiny-ImageNet subset.

One FFN per epoch, least squares at surgery, 32 epochs of recovery.
"""

_base_ = './deit-tiny-tuned_2cpu-44e_tiny-imagenet.py'

custom_hooks = [
    dict(type='mcf_mm.MCFPruningHook', ratio=0.4, compensation='least_squares'),
]
