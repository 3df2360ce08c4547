"""Twelve epochs in bfloat16 on two CPU cores.

What starts from random values learns faster than the pretrained backbone.
"""

max_epochs = 12

optim_wrapper = dict(
    type='mcf_mm.Bf16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,  # biases and norms
        custom_keys={
            '.pos_embed': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            'neck': dict(lr_mult=2.0),
            'rpn_head': dict(lr_mult=2.0),
            'roi_head': dict(lr_mult=2.0),
            'bbox_head': dict(lr_mult=2.0),
        },
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-6, by_epoch=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
