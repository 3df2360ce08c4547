"""The public YOLOS-Ti, whose outputs are COCO's category ids. See yolos_deit-small_public_coco."""

_base_ = ['./yolos_deit-tiny_8xb2-300e_coco.py', '../_base_/datasets/coco_category_ids.py']

model = dict(
    backbone=dict(init_cfg=None),
    bbox_head=dict(num_classes=91, class_ids=_base_.category_ids),
)
