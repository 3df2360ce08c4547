"""DeiT-Tiny fine-tuned on the Tiny-ImageNet subset at 112 px: the dense side of the comparison.

44 short epochs of 1,000 photos each, for two CPU cores: pruning takes one epoch for each FFN.
Starts from the ImageNet-1K weights with the rows of the 200 classes in the head, see
tools/prepare_real_data.py.
"""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/tiny_imagenet_112.py',
]
custom_imports = dict(imports=['mcf_mm.registry'])

max_epochs = 44
prune_epochs = 12  # one for each FFN, at a small rate; the others are for the recovery
learning_rate = 2e-4

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mcf_mm.SlimVisionTransformer', arch='deit-tiny', img_size={{_base_.image_size}}
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes={{_base_.num_classes}},
        in_channels=192,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
load_from = 'checkpoints/deit_tiny_tiny-imagenet.safetensors'

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='ConstantLR', factor=0.25, end=prune_epochs),
    dict(
        type='CosineAnnealingLR',
        begin=prune_epochs,
        end=max_epochs,
        T_max=max_epochs - prune_epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
train_dataloader = dict(sampler=dict(epoch_size=1000))
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=22)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=8), checkpoint=dict(interval=1, max_keep_ckpts=2)
)
randomness = dict(seed=0)
