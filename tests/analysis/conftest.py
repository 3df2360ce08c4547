"""Photos of COCO, and two detectors for them."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from detectors import build, small
from torch import nn

from mcf_mm.registry import DATASETS
from mcf_mm.weights.slim_config import write_slim


@pytest.fixture(scope='session')
def photos(shared_data, tmp_path_factory) -> list[Path]:
    """Three photos of COCO."""
    folder = tmp_path_factory.mktemp('photos')
    with tarfile.open(shared_data / 'coco_mini.tar.xz') as archive:
        members = (member for member in archive if member.name.endswith('.jpg'))
        for member in [next(members) for _ in range(3)]:
            with (folder / Path(member.name).name).open('wb') as file:
                shutil.copyfileobj(archive.extractfile(member), file)
    return sorted(folder.iterdir())


@pytest.fixture(scope='session')
def dense(tmp_path_factory) -> tuple[Path, Path, nn.Module]:
    """Config and checkpoint of a dense YOLOS for COCO, as a Runner writes it."""
    folder = tmp_path_factory.mktemp('dense')
    cfg = small('deit-tiny_8xb2-300e_coco')
    model = build(cfg)
    classes = DATASETS.build(
        dict(cfg.test_dataloader.dataset, type='mmdet.CocoDataset', lazy_init=True)
    ).metainfo['classes']
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))),
        folder / 'dense.pth',
    )
    cfg.dump(folder / 'dense.py')
    return folder / 'dense.py', folder / 'dense.pth', model


@pytest.fixture(scope='session')
def pruned(tmp_path_factory) -> tuple[Path, Path, nn.Module]:
    """The same for a pruned YOLOS for facemask_coco, as pruning leaves it: slim.py and weights."""
    folder = tmp_path_factory.mktemp('pruned')
    sizes = dict(inputs=[19, 20], hidden=[33, 40])
    cfg = small('deit-tiny_2cpu-24e_facemask', sizes=sizes)
    model = build(cfg)
    dataset = DATASETS.build(
        dict(cfg.test_dataloader.dataset, type='mmdet.CocoDataset', lazy_init=True)
    )
    write_slim(model, cfg, folder, {}, dataset)
    return folder / 'slim.py', folder / 'slim.safetensors', model
