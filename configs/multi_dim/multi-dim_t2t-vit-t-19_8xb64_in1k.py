"""T2T-ViT-19 with 60 % of its MACs: heads, hidden units and tokens by a searched policy.

Search first, as multi-dim_deit-small_8xb128_in1k.py says, with
--out work_dirs/multi_dim/t2t-vit-t-19.
The weights are those of the publication under mmpretrain's names: mmpretrain's own T2T-ViT is
another function, see mcf_mm.SlimT2T_ViT, and its weights do not fit.
"""

_base_ = 'mmpretrain::t2t_vit/t2t-vit-t-19_8xb64_in1k.py'
custom_imports = dict(imports=['mcf_mm.registry'])

max_epochs = 100

model = dict(backbone=dict(type='mcf_mm.SlimT2T_ViT'))
load_from = 'checkpoints/t2t-vit-t-19_in1k.safetensors'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion=dict(type='HSIC'),
        sizes='work_dirs/multi_dim/t2t-vit-t-19/policy.json',
    )
]

# The recipe of ../mcf (ours), for 8 GPUs with 64 images each.
optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=max_epochs)
