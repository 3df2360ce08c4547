"""See atss_deit-tiny_sfp_2cpu-12e_facemask, from a DeiT-Ti that was pruned in one shot."""

_base_ = './atss_deit-tiny_sfp_2cpu-12e_facemask.py'

checkpoint = 'work_dirs/photos/least_squares/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
