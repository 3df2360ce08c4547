"""Ten real image files and a micro DeiT to train on them."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image


@pytest.fixture
def photos(tmp_path) -> Path:
    """Image folder with two classes of five 32 px pictures."""
    rng = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / 'photos' / ('cat', 'dog')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    return tmp_path / 'photos'


@pytest.fixture
def cfg(photos, tmp_path) -> Config:
    """mmpretrain config: 3 layers of width 16, 5 epochs, MCF at one FFN per epoch."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ]
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='CustomDataset', data_root=str(photos), pipeline=pipeline),
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    test_loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(
            type='CustomDataset', data_root=str(photos), pipeline=[pipeline[0], pipeline[2]]
        ),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(tmp_path / 'work'),
            experiment_name=tmp_path.name,
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='mcf_mm.SlimVisionTransformer',
                    arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=40),
                    img_size=32,
                    patch_size=8,
                ),
                head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16),
            ),
            # Beside the model, where mmpretrain's bases have it.
            data_preprocessor=dict(num_classes=2, mean=[127.0] * 3, std=[60.0] * 3),
            train_dataloader=loader,
            val_dataloader=test_loader,
            test_dataloader=test_loader,
            val_evaluator=dict(type='Accuracy', topk=1),
            test_evaluator=dict(type='Accuracy', topk=1),
            train_cfg=dict(by_epoch=True, max_epochs=5, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
            param_scheduler=[dict(type='CosineAnnealingLR', T_max=5)],
            custom_hooks=[dict(type='mcf_mm.MCFPruningHook', ratio=0.4, num_images=10)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
            randomness=dict(seed=0, deterministic=True),
            log_level='INFO',
        )
    )
