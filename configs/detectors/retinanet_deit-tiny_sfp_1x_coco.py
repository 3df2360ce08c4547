"""RetinaNet on a plain DeiT-Ti with a simple feature pyramid, 1x schedule on COCO."""

_base_ = [
    '../_base_/models/retinanet_deit-tiny_sfp.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
