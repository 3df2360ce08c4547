"""YOLOS-S on COCO, type II: one position embedding, for the input, of the evaluation's size.

By its authors lighter and better than type I, 36.6 AP against 36.1 (issue 3 of their repository,
which adds up 24.6 M parameters; with 80 classes the network has 23.9 M, type I 30.7 M).
"""

_base_ = './yolos_deit-small_8xb1-150e_coco.py'

model = dict(backbone=dict(img_size=(800, 1344), with_mid_pos_embed=False))
