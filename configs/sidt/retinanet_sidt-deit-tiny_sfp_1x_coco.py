"""SiDT in a detector: RetinaNet on a plain DeiT-Ti on COCO, 1x schedule."""

_base_ = '../detectors/retinanet_deit-tiny_sfp_1x_coco.py'

ratio = 0.2  # or 0.4 with --cfg-options custom_hooks.0.ratio=0.4
search_epochs = 4  # of 12 (ours)

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
