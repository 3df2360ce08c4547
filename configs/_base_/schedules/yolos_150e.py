"""Recipe of YOLOS-S: AdamW, cosine from epoch to epoch, no warm-up."""

max_epochs = 150

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,  # biases and norms of the backbone
        # The dot keeps mid_pos_embed out, which is decayed.
        custom_keys={
            '.pos_embed': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            '.det_token': dict(decay_mult=0.0),
            # As in the public code, biases too. A key of its own switches flat_decay_mult off.
            'bbox_head': dict(decay_mult=1.0),
        },
    ),
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-7)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=42)
