"""Tiny-ImageNet subset (200 classes, 100 + 25 photos of 64 px each), enlarged to 112 px."""

image_size = 112
num_classes = 200

data_preprocessor = dict(
    num_classes=num_classes,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=image_size, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type='CustomDataset', data_root='data/tiny_imagenet/train', pipeline=train_pipeline
    ),
    # An epoch is a part of the set; configs say how large.
    sampler=dict(type='mcf_mm.ShortEpochSampler', epoch_size=4000),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    dataset=dict(type='CustomDataset', data_root='data/tiny_imagenet/val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
