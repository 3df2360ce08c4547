"""SiDT on DeiT-Small, ImageNet-1K: 20 % of q/k, value and hidden dimensions, found by a search.

The share of the paper is 20 % or 40 % (--cfg-options custom_hooks.0.ratio=0.4). Its recipe is not
known: epochs and rates are ours, those of ../mcf. Weights as in ../mcf/mcf_deit-small_8xb128_in1k.
"""

_base_ = '../_base_/imagenet/deit-small_8xb128.py'

ratio = 0.2  # share of each kind that goes
search_epochs = 30  # of 100; the others recover

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
