"""DeiT-Small pruned by MCF on ImageNet-1K: 22.051 M to 14.673 M parameters at ratio 0.4.

One training run: an FFN is sparsified in each of the first 12 epochs, then the network becomes
small and the other epochs recover. The recipe is Swin's with a small learning rate, as in section
4.1 of the paper; it gives no number of epochs and no rate, so both are ours.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py deit_small_patch16_224-cd65a155.pth \
    checkpoints/deit_small_in1k.safetensors --to mmpretrain
"""

_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'
custom_imports = dict(imports=['mcf_mm.registry'])

ratio = 0.4  # share of the inputs and of the hidden units of each FFN that goes
max_epochs = 100
learning_rate = 1e-4  # for 8 GPUs with 128 images each

model = dict(backbone=dict(type='mcf_mm.SlimVisionTransformer'))
load_from = 'checkpoints/deit_small_in1k.safetensors'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=learning_rate, weight_decay=0.05))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=max_epochs)
