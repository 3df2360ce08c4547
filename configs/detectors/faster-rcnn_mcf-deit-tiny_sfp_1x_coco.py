"""Faster R-CNN with a simple feature pyramid on a DeiT-Ti that MCF has pruned on ImageNet-1K."""

_base_ = './faster-rcnn_deit-tiny_sfp_1x_coco.py'

checkpoint = 'work_dirs/mcf_deit-tiny_8xb128_in1k/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
