"""A micro classifier on disk, its images to train on apart from those to report on."""

from pathlib import Path

import pytest
from micro import ARCH, write
from mmengine.config import Config


@pytest.fixture
def apart(cfg, photos) -> Config:
    """Six photos to train on and four to report on; a network of which all kinds can be pruned."""
    cfg.custom_hooks = []
    cfg.model.backbone.arch = dict(ARCH)
    cfg.model.head.in_channels = ARCH['embed_dims']
    files = sorted(str(path.relative_to(photos)) for path in photos.rglob('*.png'))
    for name, chosen in (('train', files[:3] + files[5:8]), ('test', files[3:5] + files[8:])):
        lines = [f'{file} {int(file.startswith("dog"))}' for file in chosen]
        (photos / f'{name}.txt').write_text('\n'.join(lines))
    for loader, name in (('train', 'train'), ('val', 'test'), ('test', 'test')):
        # Serialised, a data set would collect garbage, for most of a second.
        dataset = cfg[f'{loader}_dataloader'].dataset
        dataset.update(ann_file=f'{name}.txt', serialize_data=False)
    return cfg


@pytest.fixture
def saved(apart, tmp_path) -> Path:
    """Folder of ``micro.py`` and ``dense.pth``."""
    return write(apart, tmp_path)
