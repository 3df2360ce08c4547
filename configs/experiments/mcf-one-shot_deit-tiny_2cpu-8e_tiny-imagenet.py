"""MCF in one shot (p = 0.4, least squares), then the same 8 epochs."""

_base_ = './deit-tiny-tuned_2cpu-8e_tiny-imagenet.py'

custom_hooks = [
    dict(type='mcf_mm.PruningHook', criterion='mcf', ratios=0.4, compensation='least_squares'),
]
