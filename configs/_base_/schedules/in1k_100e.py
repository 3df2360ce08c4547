"""100 epochs on ImageNet-1K for a network that is pruned or recovers: a cosine, no warm-up.

Ours: MCF's paper has Swin's recipe with a small rate and gives no number of epochs.
"""

max_epochs = 100

param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
