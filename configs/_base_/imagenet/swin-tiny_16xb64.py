"""Swin-Tiny on ImageNet-1K, from trained weights: all of a run but what prunes."""

_base_ = './swin-base_16xb64.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.2), head=dict(in_channels=768))
load_from = 'checkpoints/swin_tiny_in1k.safetensors'
