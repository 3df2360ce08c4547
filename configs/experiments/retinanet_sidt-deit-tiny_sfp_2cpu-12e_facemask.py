"""SiDT in a detector: RetinaNet on a plain DeiT-Ti, facemask_coco, for two CPU cores."""

_base_ = './retinanet_deit-tiny_sfp_2cpu-12e_facemask.py'

ratio = 0.2  # or 0.4 with --cfg-options custom_hooks.0.ratio=0.4
search_epochs = 3  # of 12 (ours)

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
