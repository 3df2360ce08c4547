"""YOLOS-Ti on the real photos of facemask_coco, small enough for two CPU cores.

Sizes, batch, learning rate and epochs are ours, and small: faces of a few pixels cannot be found.
40 detection tokens are enough for all but 4 of the 677 training photos and 2 of the 171 others.
"""

_base_ = './yolos_deit-tiny_8xb2-300e_coco.py'

classes = ('mask_weared_incorrect', 'with_mask', 'without_mask')
dataset = dict(data_root='data/facemask_coco/', metainfo=dict(classes=classes))
max_epochs = 40

model = dict(
    backbone=dict(img_size=(176, 176), num_det_tokens=40), bbox_head=dict(num_classes=len(classes))
)

train_pipeline = _base_.train_pipeline
resize = train_pipeline[3].transforms[0][0]
resize.scales = [(side, side) for side in (144, 160, 176)]
train_pipeline[3] = resize  # no crop: the photos are small
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (176, 176)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/facemask_coco/annotations/instances_val2017.json')
test_evaluator = val_evaluator

# What starts from random values learns faster than the pretrained encoder.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        custom_keys={'.det_token': dict(lr_mult=5.0), 'bbox_head': dict(lr_mult=5.0)}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=200, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-6),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=2)
