"""Mask R-CNN with a simple feature pyramid on a DeiT-S that MCF has pruned on ImageNet-1K."""

_base_ = './mask-rcnn_deit-s_sfp_1x_coco.py'

checkpoint = 'work_dirs/mcf_deit-small_8xb128_in1k/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
