"""facemask_coco: 677 photos to train on and 171 others, three classes; see configs/experiments."""

_base_ = './small_coco_320.py'

data_root = 'data/facemask_coco/'
classes = ('mask_weared_incorrect', 'with_mask', 'without_mask')

dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(**dataset))
val_dataloader = dict(dataset=dict(**dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json', classwise=True)
test_evaluator = val_evaluator
