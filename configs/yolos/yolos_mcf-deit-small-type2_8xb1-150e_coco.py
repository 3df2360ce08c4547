"""YOLOS-S, type II, on COCO from a DeiT-S that MCF has pruned on ImageNet-1K."""

_base_ = './yolos_deit-small-type2_8xb1-150e_coco.py'

checkpoint = 'work_dirs/mcf_deit-small_8xb128_in1k/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
