"""YOLOS learns: a small one finds every object of ten images that it was trained on."""

from mcf_mm.engine.runner import build_runner

STEPS = 400


def test_it_finds_what_it_was_trained_on(detection_cfg):
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[60.0] * 3, std=[80.0] * 3, pad_size_divisor=16
        ),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=128),
            img_size=(96, 96),
            num_det_tokens=8,
            patch_size=8,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=64),
    )
    # Boxes are resized with their image.
    load, resize, boxes, pack = detection_cfg.train_dataloader.dataset.pipeline
    detection_cfg.train_dataloader.dataset.pipeline = [load, boxes, resize, pack]
    epochs = STEPS // 2  # of two batches
    detection_cfg.optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.0), clip_grad=dict(max_norm=1.0)
    )
    detection_cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, end=10, by_epoch=False),
        dict(type='CosineAnnealingLR', T_max=epochs, end=epochs, eta_min=1e-5),
    ]
    detection_cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    detection_cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=epochs)
    detection_cfg.randomness = dict(seed=0)
    runner = build_runner(detection_cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert runner.iter == STEPS
    assert scalars['val/coco/bbox_mAP_50'].current() > 0.9
    assert scalars['train/loss'].data[0][-1] < 0.2 * scalars['train/loss'].data[0][0]
