"""Scenes of one to three digits in COCO's format; tools/demo/digits.py writes them."""

data_root = 'data/digits/detection/'
canvas = 40
batch_size = 16
# Images are tiny: a second process costs more than it saves.
num_workers = 0

classes = tuple('0123456789')
pipeline = [
    dict(type='LoadImageFromFile'),
    # Changes nothing here; mmdet wants a scale factor to turn boxes back.
    dict(type='Resize', scale=(canvas, canvas), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    drop_last=True,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=num_workers,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'val.json', metric='bbox')
# The recipe was chosen on val; test is for the figures that are reported.
test_dataloader = dict(
    batch_size=100,
    num_workers=num_workers,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='test.json',
        data_prefix=dict(img='test/'),
        test_mode=True,
        pipeline=pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'test.json', metric='bbox')
