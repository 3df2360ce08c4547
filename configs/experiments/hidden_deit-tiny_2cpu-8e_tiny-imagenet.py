"""Hidden units alone, chosen by FIS, in one shot, then the same 8 epochs."""

_base_ = './deit-tiny-tuned_2cpu-8e_tiny-imagenet.py'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion='mcf',
        ratios=dict(hidden=0.52),
        compensation='least_squares',
    ),
]
