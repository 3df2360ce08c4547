"""The public YOLOS-S (dWr), narrower and deeper. See yolos_deit-small_public_coco."""

_base_ = './yolos_deit-small_public_coco.py'

arch = dict(embed_dims=330, num_layers=14, num_heads=6, feedforward_channels=1320)
model = dict(backbone=dict(arch=dict(_delete_=True, **arch)), bbox_head=dict(embed_dims=330))
