"""DeiT-Tiny on 1,000 ImageNet photos, one of each class, to check and to prune real weights.

Calibrates on the photos of the even classes. Evaluates on all of them; with
``--cfg-options test_dataloader.dataset.ann_file=report.txt`` on those of the odd classes, which
is what a pruned network is to be judged by. The photos are probably from the training set of
ImageNet: compare figures on them with figures on them only.
"""

_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
custom_imports = dict(imports=['mcf_mm.registry'])

data_root = 'data/imagenet_samples'

model = dict(backbone=dict(type='mcf_mm.SlimVisionTransformer'))

# The whole shorter side, 224 px: the weights do better on these photos so than with a margin.
_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
_photos = dict(_delete_=True, type='CustomDataset', data_root=data_root, pipeline=_pipeline)
train_dataloader = dict(
    batch_size=50, num_workers=0, dataset=dict(**_photos, ann_file='calibrate.txt')
)
test_dataloader = dict(batch_size=50, num_workers=0, dataset=_photos)
val_dataloader = test_dataloader
