"""ATSS of mmdet on a plain DeiT-Ti; the head is that of mmdet's ``atss_r50_fpn_1x_coco.py``."""

_base_ = './retinanet_deit-tiny_sfp.py'

model = dict(
    type='ATSS',
    bbox_head=dict(
        type='ATSSHead',
        anchor_generator=dict(
            # One square anchor of 8 strides at each place.
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
        ),
        bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9), sampler=None),
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
