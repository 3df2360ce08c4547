"""Swin-Base on ImageNet-1K, from trained weights: all of a run but what prunes.

Model and augmentations are those of mmpretrain's ``swin-base_16xb64_in1k.py``. The configs of
../../mcf say where the weights come from.
"""

_base_ = [
    'mmpretrain::_base_/models/swin_transformer/base_224.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../schedules/adamw_in1k_100e.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mcf_mm.registry'])

model = dict(backbone=dict(type='mcf_mm.SlimSwinTransformer'))
load_from = 'checkpoints/swin_base_in1k.safetensors'
