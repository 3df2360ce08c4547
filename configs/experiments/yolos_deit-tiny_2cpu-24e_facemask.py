"""The same for two CPU cores: about a third of the published sizes, fewer and smaller steps."""

_base_ = './yolos_deit-tiny_1xb8-300e_facemask.py'

max_epochs = 24
scales = [(320, shorter) for shorter in range(112, 193, 16)]

model = dict(backbone=dict(img_size=(192, 272)))

train_pipeline = _base_.train_pipeline
(resize,), (before_crop, crop, resize_crop) = train_pipeline[3].transforms
resize.scales = resize_crop.scales = scales
before_crop.scales = [(320, shorter) for shorter in (96, 120, 144)]
crop.crop_size = (92, 144)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (320, 192)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=200, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-6),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
default_hooks = dict(logger=dict(interval=50))
auto_scale_lr = dict(base_batch_size=2)
