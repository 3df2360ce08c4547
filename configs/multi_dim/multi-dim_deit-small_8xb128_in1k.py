"""DeiT-Small with 60 % of its MACs: heads, hidden units and tokens by a searched policy.

Search first, on photos of the training set; it writes the policy that is named below:
python tools/search.py configs/multi_dim/multi-dim_deit-small_8xb128_in1k.py \
    checkpoints/deit_small_in1k.safetensors --criterion hsic --budget macs=60% --score masked \
    --out work_dirs/multi_dim/deit-small

This run then cuts the network at its start and recovers. The paper gives no recipe; this one is
that of ../mcf (ours). Weights as in ../mcf/mcf_deit-small_8xb128_in1k.py.
"""

_base_ = '../_base_/imagenet/deit-small_8xb128.py'

custom_hooks = [
    dict(
        type='mcf_mm.PruningHook',
        criterion=dict(type='HSIC'),
        sizes='work_dirs/multi_dim/deit-small/policy.json',
    )
]
