"""DeiT-Small with distillation token, pruned by MCF on ImageNet-1K at ratio 0.4.

The paper has no such row. Starts from the original release's weights:
python tools/convert_checkpoint.py deit_small_distilled_patch16_224-649709d9.pth \
    checkpoints/deit_small_distilled_in1k.safetensors --to mmpretrain
"""

_base_ = 'mmpretrain::deit/deit-small-distilled_4xb256_in1k.py'
custom_imports = dict(imports=['mcf_mm.registry'])

ratio = 0.4
max_epochs = 100
learning_rate = 1e-4  # for 8 GPUs with 128 images each

model = dict(backbone=dict(type='mcf_mm.SlimDistilledVisionTransformer'))
load_from = 'checkpoints/deit_small_distilled_in1k.safetensors'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=learning_rate, weight_decay=0.05))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=max_epochs)
