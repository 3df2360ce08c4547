"""T2T-ViT-19 with 60 % of its MACs: heads, hidden units and tokens by a searched policy.

See multi-dim_t2t-vit-t-14_8xb64_in1k.py; search with --out work_dirs/multi_dim/t2t-vit-t-19.
"""

_base_ = './multi-dim_t2t-vit-t-14_8xb64_in1k.py'

embed_dims = 448

model = dict(
    backbone=dict(
        embed_dims=embed_dims,
        num_layers=19,
        layer_cfgs=dict(num_heads=7, feedforward_channels=3 * embed_dims),
    ),
    head=dict(in_channels=embed_dims),
)
load_from = 'checkpoints/t2t-vit-t-19_in1k.safetensors'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion=dict(type='HSIC'),
        sizes='work_dirs/multi_dim/t2t-vit-t-19/policy.json',
    )
]
optim_wrapper = dict(optimizer=dict(weight_decay=0.065))
