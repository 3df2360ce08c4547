"""SiDT on DeiT-Tiny for two CPU cores: two epochs search, six recover, of all 20,000 photos.

Starts where the dense side, deit-tiny-tuned_2cpu-8e_tiny-imagenet.py, does.
"""

_base_ = './deit-tiny-tuned_2cpu-8e_tiny-imagenet.py'

ratio = 0.2  # or 0.4 with --cfg-options custom_hooks.0.ratio=0.4
search_epochs = 2

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
