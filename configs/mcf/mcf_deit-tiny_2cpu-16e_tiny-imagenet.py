"""DeiT-Tiny pruned by MCF (p = 0.4) in one run on the Tiny-ImageNet subset: 12 + 4 epochs."""

_base_ = './deit-tiny_2cpu-16e_tiny-imagenet.py'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4)]
