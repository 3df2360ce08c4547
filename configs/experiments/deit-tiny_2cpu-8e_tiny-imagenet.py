"""DeiT-Tiny on the Tiny-ImageNet subset for 8 short epochs: the training of the ablation table.

tools/prune.py on this config writes networks that train in the same way.
"""

_base_ = './deit-tiny_2cpu-44e_tiny-imagenet.py'

max_epochs = 8

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
