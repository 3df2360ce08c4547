"""The same with the dense network as teacher of the recovery."""

_base_ = './mcf_deit-tiny_2cpu-44e_tiny-imagenet.py'

custom_hooks = _base_.custom_hooks
custom_hooks[0].teacher = dict(logits=1.0, blocks=1.0)
