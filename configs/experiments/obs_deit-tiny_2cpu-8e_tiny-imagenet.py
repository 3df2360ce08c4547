"""The closed form over all dimensions, as small as MCF with p = 0.4, then the same 8 epochs."""

_base_ = './deit-tiny-tuned_2cpu-8e_tiny-imagenet.py'

custom_hooks = [
    dict(type='mcf_mm.PruningHook', budget='params=3686792'),
]
