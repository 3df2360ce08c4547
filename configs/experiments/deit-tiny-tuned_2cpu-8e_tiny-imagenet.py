"""The fine-tuned DeiT-Tiny for 8 epochs of all 20,000 photos: the dense side of the closed form.

Run deit-tiny_2cpu-44e_tiny-imagenet.py first, its last checkpoint is where all of them start.
"""

_base_ = './deit-tiny-tuned_2cpu-44e_tiny-imagenet.py'

max_epochs = 8

optim_wrapper = dict(
    # Twice as fast on CPUs with bfloat16 units, for 50 tokens with this kernel.
    type='mcf_mm.Bf16OptimWrapper',
    attention='math',
    optimizer=dict(lr=1e-4),
)
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_dataloader = dict(sampler=dict(epoch_size=20000))
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
default_hooks = dict(logger=dict(interval=100))
