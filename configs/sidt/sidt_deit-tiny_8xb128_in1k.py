"""SiDT on DeiT-Tiny, ImageNet-1K. See sidt_deit-small_8xb128_in1k."""

_base_ = './sidt_deit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))
load_from = 'checkpoints/deit_tiny_in1k.safetensors'
