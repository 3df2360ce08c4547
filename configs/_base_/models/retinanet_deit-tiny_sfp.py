"""RetinaNet of mmdet on a plain DeiT-Ti; backbone and neck alone differ."""

_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './deit-tiny_sfp.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.plain_backbone),
    # Strides 8 to 128.
    neck=dict(_delete_=True, start_level=1, **_base_.simple_pyramid),
)
