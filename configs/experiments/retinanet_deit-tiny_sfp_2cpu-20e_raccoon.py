"""RetinaNet on a plain DeiT-Ti for two CPU cores, on the raccoons at 224 px."""

_base_ = [
    '../_base_/models/retinanet_deit-tiny_sfp.py',
    '../_base_/datasets/raccoon_224.py',
    '../_base_/schedules/adamw_2cpu-12e.py',
    'mmdet::_base_/default_runtime.py',
]

max_epochs = 20

model = dict(neck=_base_.small_neck, bbox_head=dict(num_classes=1, **_base_.small_head))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-6, by_epoch=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
