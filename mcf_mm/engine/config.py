"""Reads a config for the tools, and what it says about images."""

import copy
import math
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from rich.console import Console
from rich.progress import track

from mcf_mm.registry import own_scope, split_type
from mcf_mm.shipped import shipped


def find_config(path: str) -> str:
    """Return the file of a config: as given, or for ``configs/...`` that which mcf_mm comes with.

    The second is said in a line on stderr.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if Path(path).is_file():
        return path
    configs = shipped('configs')
    if Path(path).parts[:1] == ('configs',) and (found := configs.parent / path).is_file():
        print(f'no file {path} here, taking {found}', file=sys.stderr)
        return str(found)
    raise FileNotFoundError(f'no config file {path}; those of mcf_mm are in {configs}')


def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config file and apply what the command line says; its code is run.

    See :func:`find_config` for configs of mcf_mm from another folder.

    Raises:
        FileNotFoundError: There is no such file.
    """
    cfg = Config.fromfile(find_config(path))
    cfg.merge_from_dict(options or {})
    return cfg


def load_config(
    path: str, work_dir: str | None = None, options: dict | None = None, launcher: str = 'none'
) -> Config:
    """Reads a config file and applies what the command line says.

    Args:
        path: Config of mmpretrain or mmdet; its ``default_scope`` decides which. Classes of
            mcf_mm may stand there without ``mcf_mm.``.
        work_dir: Folder for logs and checkpoints. Defaults to the config's own, or
            ``work_dirs/<name of the config>``.
        options: Settings to override, ``{'train_cfg.max_epochs': 3}``. Defaults to none.
        launcher: Job launcher, as in MMEngine. Defaults to ``'none'``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The config does not say its ``default_scope``.
    """
    cfg = read_config(path, options)
    if not cfg.get('default_scope'):
        raise ValueError(
            f'{path} has no default_scope: inherit the default_runtime of mmpretrain or mmdet, or '
            "set default_scope='mmpretrain' or 'mmdet'"
        )
    own_scope(cfg)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) > 0:
            # Starting workers anew each epoch costs seconds; mmpretrain's bases do not say so.
            loader.setdefault('persistent_workers', True)
    return cfg


def hook_types(cfg: Config) -> list[str]:
    """Class names of the custom hooks in a config, without scope."""
    return [split_type(hook['type'])[1] for hook in cfg.get('custom_hooks') or []]


def dataset_shapes(config: Config, num_images: int) -> list[tuple[int, int]]:
    """Height and width of the first images that the config evaluates, as the network gets them.

    First by their number in the annotations: YOLOS and DETR publish the mean MACs of the first 100
    images of COCO's validation set in that order. Each is a batch of its own, padded as the
    config's preprocessor pads.

    Args:
        config: A config of mmdet or mmpretrain with a ``test_dataloader`` or ``val_dataloader``.
        num_images: How many images.

    Raises:
        ValueError: The config has no such loader, or its dataset has fewer images.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader')
    if not loader:
        raise ValueError('the config has neither test_dataloader nor val_dataloader')
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        dataset = DATASETS.build(copy.deepcopy(loader.dataset))
    if not 0 < num_images <= len(dataset):
        raise ValueError(
            f'{num_images} images are asked for, the dataset that the config evaluates has '
            f'{len(dataset)}'
        )
    numbers = [dataset.get_data_info(i).get('img_id', i) for i in range(len(dataset))]
    first = sorted(range(len(dataset)), key=numbers.__getitem__)[:num_images]
    preprocessor = config.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    console = Console(stderr=True)
    return [
        tuple(math.ceil(side / divisor) * divisor for side in dataset[i]['inputs'].shape[-2:])
        for i in track(first, 'reading images', console=console, transient=True)
    ]


def input_shape(config: Config) -> tuple[int, int]:
    """Height and width of the images that the config evaluates.

    The last crop or resize of the test (or validation) pipeline, or the backbone's ``img_size``
    where there is no such step. A detector that keeps the aspect ratio is counted at the largest
    landscape image it can meet (800 x 1333 for the usual scale; images of COCO are smaller in the
    mean), rounded up to what the batch is padded to.

    Raises:
        ValueError: The config has neither.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader') or {}
    dataset = loader.get('dataset', {})
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    size = config.model.get('backbone', {}).get('img_size')
    for step in dataset.get('pipeline', []):
        kind = split_type(step['type'])[1]
        if kind == 'CenterCrop':
            size = step['crop_size']
        elif kind.endswith('Resize') and step.get('scale'):
            scale = step['scale']
            size = scale if isinstance(scale, int) else scale[::-1]
            # Every other resize with a pair of numbers takes it as a limit, whatever the order.
            if not isinstance(scale, int) and step.get('keep_ratio', kind != 'Resize'):
                size = sorted(scale)
    if size is None:
        raise ValueError(
            'the config says no image size (no CenterCrop or Resize in the pipeline of '
            'test_dataloader, no img_size of the backbone); set one, or give tools/complexity.py '
            '--shape HEIGHT WIDTH'
        )
    preprocessor = config.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    height, width = (size, size) if isinstance(size, int) else size
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor
