"""SiDT on DeiT-Tiny, ImageNet-1K. See sidt_deit-small_8xb128_in1k."""

_base_ = '../_base_/imagenet/deit-tiny_8xb128.py'

ratio = 0.2  # or 0.4 with --cfg-options custom_hooks.0.ratio=0.4
search_epochs = 30

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
