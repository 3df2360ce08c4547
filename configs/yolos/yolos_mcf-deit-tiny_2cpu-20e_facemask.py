"""YOLOS-Ti on facemask_coco from a DeiT-Ti that MCF has pruned."""

_base_ = './yolos_deit-tiny_2cpu-20e_facemask.py'

checkpoint = 'work_dirs/mcf_deit-tiny_2cpu-16e_tiny-imagenet/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
