"""YOLOS-Ti on COCO as published, type II, from a dense DeiT-Ti."""

_base_ = './yolos_deit-small_8xb1-150e_coco.py'

max_epochs = 300
# The longer side is limited in the same ratio as in YOLOS-S: 608 * 1333 // 800, 512 * 1333 // 800.
scales = [(1013, shorter) for shorter in range(256, 609, 16)]
test_scale = (853, 512)

model = dict(
    backbone=dict(
        arch='deit-tiny',
        img_size=(800, 1333),
        with_mid_pos_embed=False,
        init_cfg=dict(checkpoint='checkpoints/deit_tiny_in1k.safetensors'),
    ),
    bbox_head=dict(embed_dims=192),
)

train_pipeline = _base_.train_pipeline
for path in train_pipeline[3].transforms:
    path[-1].scales = scales
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = test_scale
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-7)]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=16)
