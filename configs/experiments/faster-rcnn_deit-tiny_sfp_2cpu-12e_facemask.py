"""Faster R-CNN on a plain DeiT-Ti for two CPU cores, at 320 px.

For another data set change the line of the data set in ``_base_`` and the number of classes.
"""

_base_ = [
    '../_base_/models/faster-rcnn_deit-tiny_sfp.py',
    '../_base_/datasets/facemask_320.py',
    '../_base_/schedules/adamw_2cpu-12e.py',
    'mmdet::_base_/default_runtime.py',
]

num_classes = 3
width = 128  # half of the usual one, and fewer regions; else these cost far more than the backbone

model = dict(
    neck=dict(out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(num_classes=num_classes, in_channels=width, fc_out_channels=512),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=300), rcnn=dict(sampler=dict(num=128))
    ),
    test_cfg=dict(rpn=dict(max_per_img=300)),
)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
