"""Hidden units alone, with the dense network as teacher of the recovery."""

_base_ = './deit-tiny-tuned_2cpu-44e_tiny-imagenet.py'

custom_hooks = [
    dict(
        type='mcf_mm.MCFPruningHook',
        input_ratio=0.0,
        hidden_ratio=0.52,
        compensation='least_squares',
        teacher=dict(logits=1.0, blocks=1.0),
    ),
]
