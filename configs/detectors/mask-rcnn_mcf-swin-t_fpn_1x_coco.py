"""Mask R-CNN of mmdet on a Swin-T that MCF has pruned on ImageNet-1K; only the backbone differs."""

_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
custom_imports = dict(imports=['mcf_mm.registry'])

checkpoint = 'work_dirs/mcf_swin-tiny_16xb64_in1k/slim.safetensors'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mcf_mm.SlimSwinTransformer',
        arch='tiny',
        sizes='auto',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        pad_small_map=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
    )
)
