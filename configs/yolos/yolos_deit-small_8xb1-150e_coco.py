"""YOLOS-S on COCO as published, type I, from a dense DeiT-S."""

_base_ = [
    '../_base_/models/yolos_deit-small.py',
    '../_base_/datasets/coco_yolos.py',
    '../_base_/schedules/yolos_150e.py',
    'mmdet::_base_/default_runtime.py',
]
