"""ATSS on a plain DeiT-Ti for two CPU cores, at 320 px.

For another data set change the line of the data set in ``_base_`` and the number of classes.
"""

_base_ = [
    '../_base_/models/atss_deit-tiny_sfp.py',
    '../_base_/datasets/facemask_320.py',
    '../_base_/schedules/adamw_2cpu-12e.py',
    'mmdet::_base_/default_runtime.py',
]

num_classes = 3

model = dict(neck=_base_.small_neck, bbox_head=dict(num_classes=num_classes, **_base_.small_head))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
