"""MCF with p = 0.4 on the trained micro DeiT: an epoch for each FFN, then recovery."""

_base_ = './deit-micro_digits.py'

load_from = 'work_dirs/deit-micro_digits/epoch_12.pth'
max_epochs = 8
lr = 1e-3

optim_wrapper = dict(optimizer=dict(lr=lr))
# One cycle: up in the first epoch, then down.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)
custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4)]
