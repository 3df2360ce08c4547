"""The recipe of DeiT and Swin on ImageNet-1K: Swin's AdamW with a small rate (the rate is ours).

Written out because mmpretrain's ``imagenet_bs1024_adamw_swin.py`` brings a schedule of its own.
"""

_base_ = './in1k_100e.py'

learning_rate = 1e-4  # for 1,024 images in a step

optim_wrapper = dict(
    optimizer=dict(
        type='AdamW',
        _scope_='mmpretrain',  # as MMEngine notes it for what is inherited from there
        lr=learning_rate,
        weight_decay=0.05,
        eps=1e-8,
        betas=(0.9, 0.999),
    ),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            '.absolute_pos_embed': dict(decay_mult=0.0),
            '.relative_position_bias_table': dict(decay_mult=0.0),
        },
    ),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(base_batch_size=1024)
