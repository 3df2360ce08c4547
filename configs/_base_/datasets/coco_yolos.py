"""COCO with the two-path augmentation of YOLOS-S; all sides are multiples of 16."""

_base_ = 'mmdet::_base_/datasets/coco_detection.py'

resize = dict(
    type='RandomChoiceResize',
    resize_type='mcf_mm.PatchResize',
    scales=[(1333, shorter) for shorter in range(480, 801, 16)],
)
before_crop = dict(
    type='RandomChoiceResize',
    resize_type='mcf_mm.PatchResize',
    # The longer side has no limit here; none in COCO comes near this one.
    scales=[(4200, 400), (4200, 500), (4200, 600)],
)
crop = dict(
    type='RandomCrop',
    crop_type='absolute_range',
    crop_size=(384, 600),
    allow_negative_crop=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [before_crop, crop, resize]]),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mcf_mm.PatchResize', scale=(1333, 800)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

# Crowd boxes are dropped by mmdet, images without boxes are kept. Published are batches of images
# drawn at random and no last batch that is smaller; mmdet's base has one, of like aspect ratios.
train_dataloader = dict(
    batch_size=1,
    batch_sampler=None,
    drop_last=True,
    dataset=dict(filter_cfg=None, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
