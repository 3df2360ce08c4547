"""DeiT-Tiny fine-tuned on the Tiny-ImageNet subset at 112 px: the dense side of the comparison.

Sixteen short epochs of 4,000 photos on two CPU cores. Starts from the ImageNet-1K weights with
the rows of the 200 classes in the head, see tools/prepare_real_data.py.
"""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/tiny_imagenet_112.py',
]

max_epochs = 16
learning_rate = 1e-4

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
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=4)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2)
)
randomness = dict(seed=0)
