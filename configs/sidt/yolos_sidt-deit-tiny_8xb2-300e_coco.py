"""SiDT in a detector: YOLOS-Ti on COCO, whose encoder is searched on the task itself.

The recipe is that of the dense detector; that a third of the epochs searches is ours.
"""

_base_ = '../yolos/yolos_deit-tiny_8xb2-300e_coco.py'

ratio = 0.2  # or 0.4 with --cfg-options custom_hooks.0.ratio=0.4
search_epochs = 100

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
