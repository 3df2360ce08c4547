"""See yolos_mcf-deit-tiny_1xb8-300e_facemask, for two CPU cores."""

_base_ = './yolos_deit-tiny_2cpu-24e_facemask.py'

checkpoint = 'work_dirs/photos/least_squares/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
