"""Single digits on the canvas of the detection scenes; tools/demo/digits.py writes them."""

data_root = 'data/digits/classification'
batch_size = 32
# Images are tiny: a second process costs more than it saves.
num_workers = 0

data_preprocessor = dict(num_classes=10, mean=[60] * 3, std=[80] * 3, to_rgb=True)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
# Moved by up to 5 pixels: the pictures on disk show each digit in a few places only.
train_pipeline = [pipeline[0], dict(type='RandomCrop', crop_size=40, padding=5), pipeline[1]]

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    drop_last=True,
    dataset=dict(
        type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=num_workers,
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='val', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
# The recipe was chosen on val; test is for the figures that are reported.
test_dataloader = dict(
    batch_size=100,
    num_workers=num_workers,
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='test', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = val_evaluator
