"""A micro DeiT that tells handwritten digits apart: 25 patches of 8 x 8 pixels, 4 layers."""

_base_ = [
    './_base_/digits_classification.py',
    './_base_/schedule.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mcf_mm.registry'])

max_epochs = 12
lr = 1.5e-3

optim_wrapper = dict(optimizer=dict(lr=lr))
# One cycle: up in the first epoch, then down.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mcf_mm.SlimVisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=40,
        patch_size=8,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
