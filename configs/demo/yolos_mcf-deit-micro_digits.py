"""YOLOS on the micro DeiT that MCF has pruned."""

_base_ = './yolos_deit-micro_digits.py'

checkpoint = 'work_dirs/mcf_deit-micro_digits/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
