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
width = 128  # half of the usual one: neck and head would cost four times as much as the backbone

model = dict(
    neck=dict(out_channels=width),
    bbox_head=dict(
        num_classes=num_classes, in_channels=width, feat_channels=width, stacked_convs=2
    ),
)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
