"""DeiT-Base on ImageNet-1K, from trained weights: all of a run but what prunes.

Drop path is that of mmpretrain's DeiT-Base config; its weight averaging is left out, as in the
other sizes.
"""

_base_ = './deit-small_8xb128.py'

model = dict(backbone=dict(arch='deit-base', drop_path_rate=0.1), head=dict(in_channels=768))
load_from = 'checkpoints/deit_base_in1k.safetensors'
