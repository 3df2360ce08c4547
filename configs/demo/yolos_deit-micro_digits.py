"""YOLOS on the dense micro DeiT: digits in scenes."""

_base_ = [
    './_base_/digits_detection.py',
    './_base_/schedule.py',
    'mmdet::_base_/default_runtime.py',
]

# For programs that do not import mcf_mm themselves, such as mmdet.apis.
custom_imports = dict(imports=['mcf_mm.registry'])

checkpoint = 'work_dirs/deit-micro_digits/epoch_12.pth'

max_epochs = 5
lr = 1e-3

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
    type='mcf_mm.YOLOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[60] * 3, std=[80] * 3, bgr_to_rgb=True
    ),
    backbone=dict(
        type='mcf_mm.YOLOSVisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=40,
        patch_size=8,
        num_det_tokens=8,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
    ),
    bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=10, embed_dims=64),
)
