"""Faster R-CNN of mmdet on a plain DeiT-Ti; backbone and neck alone differ."""

_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './deit-tiny_sfp.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.plain_backbone),
    # Strides 4 to 64.
    neck=dict(_delete_=True, **_base_.simple_pyramid),
)
