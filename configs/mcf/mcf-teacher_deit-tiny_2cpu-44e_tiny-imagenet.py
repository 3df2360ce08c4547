"""The same with the dense network as teacher of the recovery."""

_base_ = './mcf_deit-tiny_2cpu-44e_tiny-imagenet.py'

custom_hooks = [
    dict(
        type='mcf_mm.MCFPruningHook',
        ratio=0.4,
        compensation='least_squares',
        teacher=dict(logits=1.0, blocks=1.0),
    ),
]
