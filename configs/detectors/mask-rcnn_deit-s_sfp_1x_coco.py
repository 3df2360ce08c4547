"""Mask R-CNN on a plain DeiT-S with a simple feature pyramid, as in ViTDet.

The paper's recipe is longer (100 epochs with large jitter of scale); this is the schedule of
mmdet's Mask R-CNN on Swin-T, for comparing backbones. Attention is global in all blocks. Position
embeddings stay those of 224 px and are resized to each batch.
"""

_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
custom_imports = dict(imports=['mcf_mm.registry'])

model = dict(
    backbone=dict(
        _delete_=True,
        type='mcf_mm.SlimVisionTransformer',
        arch='deit-small',
        out_type='featmap',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/deit_small_in1k.safetensors',
            prefix='backbone.',
        ),
    ),
    neck=dict(_delete_=True, type='mcf_mm.SimpleFeaturePyramid', in_channels=384),
)

optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        flat_decay_mult=0.0,  # biases and norms
        custom_keys={'.pos_embed': dict(decay_mult=0.0), '.cls_token': dict(decay_mult=0.0)},
    )
)
