"""DeiT-Small on ImageNet-1K, from trained weights: all of a run but what prunes.

Model and augmentations are those of mmpretrain's ``deit-small_4xb256_in1k.py``. The configs of
../../mcf say where the weights come from.
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../schedules/adamw_in1k_100e.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mcf_mm.registry'])

model = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',  # as MMEngine notes it for what is inherited from there
    backbone=dict(
        type='mcf_mm.SlimVisionTransformer', arch='deit-small', img_size=224, patch_size=16
    ),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
load_from = 'checkpoints/deit_small_in1k.safetensors'

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)}
    )
)
