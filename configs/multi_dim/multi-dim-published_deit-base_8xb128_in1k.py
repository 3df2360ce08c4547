"""DeiT-Base cut by the policy of the public release, which leaves about 40 % of the MACs."""

_base_ = './multi-dim_deit-base_8xb128_in1k.py'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion=dict(type='HSIC'),
        sizes='{{ fileDirname }}/policies/deit-base_published.json',
    )
]
