"""Swin-Base pruned by MCF on ImageNet-1K: 87.768 M to 65.113 M parameters at ratio 0.3.

24 FFNs, one in each of the first 24 epochs. Guidance has no class token: it follows the mean over
tokens, and ends where patch merging breaks the identity of the channels.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py swin_base_patch4_window7_224.pth \
    checkpoints/swin_base_in1k.safetensors --to mmpretrain
"""

_base_ = 'mmpretrain::swin_transformer/swin-base_16xb64_in1k.py'
custom_imports = dict(imports=['mcf_mm.registry'])

ratio = 0.3  # share of the inputs and of the hidden units of each FFN that goes
max_epochs = 100
learning_rate = 1e-4  # for 16 GPUs with 64 images each

model = dict(backbone=dict(type='mcf_mm.SlimSwinTransformer'))
load_from = 'checkpoints/swin_base_in1k.safetensors'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]

optim_wrapper = dict(optimizer=dict(lr=learning_rate))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=max_epochs)
