"""AdamW, and validation now and then; the configs say for how long and how fast."""

optim_wrapper = dict(
    optimizer=dict(type='AdamW', betas=(0.9, 0.95), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,  # biases and norms
        custom_keys={
            '.pos_embed': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            '.det_token': dict(decay_mult=0.0),
        },
    ),
)
train_cfg = dict(type='EpochBasedTrainLoop', val_interval=4)
val_cfg = dict()
test_cfg = dict()
