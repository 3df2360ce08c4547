"""YOLOS-S, type I, from a DeiT-S that was trained on ImageNet-1K."""

# For programs that do not import mcf_mm themselves, such as mmdet.apis.
custom_imports = dict(imports=['mcf_mm.registry'])

model = dict(
    type='mcf_mm.YOLOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='mcf_mm.YOLOSVisionTransformer',
        arch='deit-small',
        img_size=(512, 864),
        with_mid_pos_embed=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/deit_small_in1k.safetensors',
            prefix='backbone.',
        ),
    ),
    bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=80, embed_dims=384),
)
