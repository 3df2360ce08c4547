"""Fixtures that many tests share."""

import gc
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

import mcf_mm  # noqa: F401  before any test imports mmcv.ops or mmdet.models

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'


def pytest_collection_finish():
    """What the imports have made stays: data sets of MMEngine collect garbage, each of them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder of the real weights and photos; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f'the real data is not here: no folder {SHARED.name} beside the checkout')
    return SHARED


@pytest.fixture(scope='session')
def coco_mini(shared_data, tmp_path_factory) -> Path:
    """Folder with 79 photos of COCO val2017 and their original annotations, 5 of them crowds."""
    folder = tmp_path_factory.mktemp('coco')
    with tarfile.open(shared_data / 'coco_mini.tar.xz') as tar:
        tar.extractall(folder, filter='data')
    return folder / 'coco_mini'


@pytest.fixture(autouse=True)
def no_default_scope():
    """Forgets the default scope that a Runner leaves behind; the next test may be of mmdet."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def looks():
    """For tests that look at how pictures of a run, or configs that it writes, are drawn or set."""


@pytest.fixture
def no_looks(request, monkeypatch):
    """Leaves out what is most of a small run: the strokes of figures, the line breaks of configs.

    Both are made and written as ever; figures stay white. Not for tests that ask for ``looks``.
    """
    if 'looks' not in request.fixturenames:
        monkeypatch.setattr('matplotlib.figure.Figure.draw', lambda figure, renderer: None)
        # Where MMEngine imports it depends on the version.
        for place in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):
            monkeypatch.setattr(
                f'{place}.FormatCode', lambda text, *args, **kwargs: (text, True), raising=False
            )


@pytest.fixture
def scenes(tmp_path):
    """Ten images of unlike size with coloured squares, in COCO format; one has no object."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(10):
        height, width = (int(side) for side in rng.integers(60, 130, 2))
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for _ in range(image_id % 4):
            x, y = (int(side) for side in rng.integers(0, 36, 2))
            label = int(rng.integers(2))
            pixels[y : y + 24, x : x + 24, label] = 255
            box = dict(bbox=[x, y, 24, 24], area=576, iscrowd=int(len(annotations) == 4))
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, category_id=(3, 7)[label], **box)
            )
        Image.fromarray(pixels).save(tmp_path / f'{image_id}.png')
        images.append(dict(id=image_id, file_name=f'{image_id}.png', height=height, width=width))
    categories = [dict(id=3, name='red'), dict(id=7, name='green')]
    scenes = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'scenes.json').write_text(json.dumps(scenes))
    return tmp_path


@pytest.fixture
def detection_cfg(scenes, no_looks) -> Config:
    """Trains and evaluates on the scenes with mmdet's own parts; the model is the test's."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mcf_mm.PatchResize', scale=(96, 96)),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ]

    def loader(**kwargs) -> dict:
        return dict(
            batch_size=5,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CocoDataset',
                data_root=str(scenes),
                ann_file='scenes.json',
                data_prefix=dict(img=''),
                metainfo=dict(classes=('red', 'green')),
                serialize_data=False,  # which would collect garbage, for most of a second
                pipeline=pipeline,
                **kwargs,
            ),
        )

    return Config(
        dict(
            work_dir=str(scenes / 'work'),
            default_scope='mmdet',
            experiment_name=scenes.name,
            train_dataloader=loader(),
            val_dataloader=loader(test_mode=True),
            val_evaluator=dict(
                type='CocoMetric', ann_file=str(scenes / 'scenes.json'), metric='bbox'
            ),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            val_cfg=dict(),
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            randomness=dict(seed=0),
        )
    )


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
def cfg(photos, tmp_path, no_looks) -> Config:
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
