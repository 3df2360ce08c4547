"""The public YOLOS-S, whose outputs are COCO's category ids, to evaluate or to train on.

    python tools/convert_checkpoint.py yolos_s_300_pre.pth checkpoints/yolos_s_public.safetensors \\
        --to mmdet
    python tools/test.py configs/yolos/yolos_deit-small_public_coco.py \\
        checkpoints/yolos_s_public.safetensors
"""

_base_ = ['./yolos_deit-small_8xb1-150e_coco.py', '../_base_/datasets/coco_category_ids.py']

model = dict(
    backbone=dict(init_cfg=None),
    bbox_head=dict(num_classes=91, class_ids=_base_.category_ids),
)
