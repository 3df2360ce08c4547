"""T2T-ViT-14 with 60 % of its MACs: heads, hidden units and tokens by a searched policy.

Search first, as multi-dim_deit-small_8xb128_in1k.py says, with
--out work_dirs/multi_dim/t2t-vit-t-14.
The weights are those of the publication under mmpretrain's names: mmpretrain's own T2T-ViT is
another function, see mcf_mm.SlimT2T_ViT, and its weights do not fit.
"""

_base_ = [
    'mmpretrain::_base_/models/t2t-vit-t-14.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_t2t_224.py',
    '../_base_/schedules/in1k_100e.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mcf_mm.registry'])

model = dict(backbone=dict(type='mcf_mm.SlimT2T_ViT'))
load_from = 'checkpoints/t2t-vit-t-14_in1k.safetensors'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion=dict(type='HSIC'),
        sizes='work_dirs/multi_dim/t2t-vit-t-14/policy.json',
    )
]

# As in mmpretrain's config, but for the rate: that of ../mcf for 8 GPUs with 64 images each.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', _scope_='mmpretrain', lr=5e-5, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'cls_token': dict(decay_mult=0.0)},
    ),
)
auto_scale_lr = dict(base_batch_size=512)
