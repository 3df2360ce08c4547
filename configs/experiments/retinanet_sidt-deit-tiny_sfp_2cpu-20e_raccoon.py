"""SiDT in a detector: RetinaNet on a plain DeiT-Ti, the raccoons, for two CPU cores.

A share of 0.35 of each kind leaves the backbone about as many parameters as MCF does at p = 0.4.
"""

_base_ = './retinanet_deit-tiny_sfp_2cpu-20e_raccoon.py'

ratio = 0.35
search_epochs = 6  # of 20 (ours)

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
