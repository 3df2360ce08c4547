"""The public YOLOS-B, type I. See yolos_deit-small_public_coco."""

_base_ = './yolos_deit-small_public_coco.py'

model = dict(backbone=dict(arch='deit-base', img_size=(800, 1344)), bbox_head=dict(embed_dims=768))
