"""DeiT-Tiny on ImageNet-1K, from trained weights: all of a run but what prunes."""

_base_ = './deit-small_8xb128.py'

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))
load_from = 'checkpoints/deit_tiny_in1k.safetensors'
