"""SiDT in a detector: RetinaNet on COCO, whose Swin-T is searched on the task itself.

It starts from the dense Swin-T of ../mcf/mcf_swin-tiny_16xb64_in1k.py; 1x schedule, of which four
epochs search (ours).
"""

_base_ = '../detectors/retinanet_mcf-swin-t_fpn_1x_coco.py'

ratio = 0.2  # or 0.4 with --cfg-options custom_hooks.0.ratio=0.4
search_epochs = 4

checkpoint = 'checkpoints/swin_tiny_in1k.safetensors'
model = dict(backbone=dict(sizes=None, init_cfg=dict(checkpoint=checkpoint)))

custom_hooks = [
    dict(type='mcf_mm.ScoreSearchHook', ratio=ratio, search_epochs=search_epochs, l1=1e-4)
]
