"""raccoon_voc: 150 photos to train on and 50 others, chosen by seed 0; one class, large objects."""

_base_ = './small_coco_320.py'

image_size = 224
data_root = 'data/raccoon_voc/'
classes = ('raccoon',)

scale = (image_size, image_size)
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = scale

dataset = dict(data_root=data_root, metainfo=dict(classes=classes), data_prefix=dict(img='images/'))
train_dataloader = dict(dataset=dict(ann_file='train.json', pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(ann_file='val.json', pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
