"""DeiT-Base with 60 % of its MACs: heads, hidden units and tokens by a searched policy.

Search first, as multi-dim_deit-small_8xb128_in1k.py says, with --out work_dirs/multi_dim/deit-base.
Weights as in ../mcf/mcf_deit-base_8xb128_in1k.py.
"""

_base_ = '../_base_/imagenet/deit-base_8xb128.py'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion=dict(type='HSIC'),
        sizes='work_dirs/multi_dim/deit-base/policy.json',
    )
]
