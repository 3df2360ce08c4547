"""YOLOS-Ti on the real photos of facemask_coco, for one GPU; not run yet.

Augmentation and sizes as published for COCO; batch and learning rates are ours. 40 detection tokens
are enough for all but 4 of the 677 training photos and 2 of the 171 others.
"""

_base_ = '../yolos/yolos_deit-tiny_8xb2-300e_coco.py'

classes = ('mask_weared_incorrect', 'with_mask', 'without_mask')
dataset = dict(data_root='data/facemask_coco/', metainfo=dict(classes=classes))

model = dict(backbone=dict(num_det_tokens=40), bbox_head=dict(num_classes=len(classes)))

train_dataloader = dict(batch_size=8, num_workers=8, dataset=dict(**dataset))
val_dataloader = dict(dataset=dict(**dataset))
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
    dict(type='CosineAnnealingLR', T_max=300, end=300, eta_min=1e-6),
]
train_cfg = dict(val_interval=10)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=8)
