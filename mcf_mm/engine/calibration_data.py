"""Calibration images for a config: training images in the evaluation pipeline."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_dist_info
from mmengine.registry import DATASETS, DefaultScope
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset

from mcf_mm.engine.runner import check_input
from mcf_mm.pruning import Observer, find_classifier
from mcf_mm.pruning.structure import check_seed, check_whole

#: Whose pipeline shows images as the network sees them when it is used; the first that there is.
EVALUATED = ('val_dataloader', 'test_dataloader', 'train_dataloader')


def calibration_loader(
    cfg: Config, num_images: int, seed: int = 0, batch_size: int = 64, start: int = 0
) -> DataLoader:
    """Loads a fixed random choice of training images, without training augmentation.

    Training images, because validation images are what results are reported on; the pipeline of
    ``val_dataloader`` (or ``test_dataloader``), because the network is to be seen as it is used.

    In distributed training each process loads its share, every n-th batch, so that the batches
    are those of one process: see ``shared`` of :func:`mcf_mm.pruning.calibrate`.

    Args:
        cfg: Config with a ``train_dataloader``.
        num_images: Number of images S, at most the size of the set.
        seed: Chooses the images. Defaults to 0.
        batch_size: Images of a batch, at most what the config trains with. Defaults to 64.
        start: How many images of the random order come before these, so that others can be
            chosen with the same seed. Defaults to 0.

    Raises:
        ValueError: The config has no ``train_dataloader`` ``num_images`` is not positive, or
            ``seed`` out of range.
    """
    check_whole('num_images', num_images, 1)
    check_seed(seed)
    dataset = evaluated_training_set(cfg)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[start : start + num_images].tolist()
    batch_size = min(batch_size, cfg.train_dataloader.get('batch_size', 64))
    rank, num_processes = get_dist_info()
    batches = list(BatchSampler(range(len(chosen)), batch_size, drop_last=False))
    return DataLoader(
        Subset(dataset, chosen),
        batch_sampler=batches[rank::num_processes],
        num_workers=cfg.train_dataloader.get('num_workers', 0),
        collate_fn=pseudo_collate,
        # Worker seeds come from here, so calibration leaves the global generator alone.
        generator=torch.Generator().manual_seed(seed),
    )


def evaluated_training_set(cfg: Config) -> Dataset:
    """The training set of a config, in the pipeline that it evaluates with.

    Raises:
        ValueError: The config has no ``train_dataloader``.
    """
    if not cfg.get('train_dataloader'):
        raise ValueError(f'{cfg.filename} has no train_dataloader to take calibration images from')
    dataset_cfg = copy.deepcopy(cfg.train_dataloader.dataset)
    for name in EVALUATED:
        if cfg.get(name):
            _set_pipeline(dataset_cfg, _pipeline(cfg[name].dataset))
            break
    check_input(dataset_cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return DATASETS.build(dataset_cfg)


def folder_images(cfg: Config, folder: str) -> Dataset:
    """All images below a folder, without labels, in the evaluation pipeline of a classifier.

    Args:
        cfg: Config of a classifier, with the loaders of :func:`calibration_loader`.
        folder: Where the images are, in folders of any depth.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f'heal: folder={folder!r} is no folder of images')
    loader = next(cfg[name] for name in EVALUATED if cfg.get(name))
    dataset_cfg = ConfigDict(
        type='mmpretrain.CustomDataset',
        data_root=folder,
        with_label=False,
        pipeline=copy.deepcopy(_pipeline(loader.dataset)),
    )
    check_input(dataset_cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        try:
            dataset = DATASETS.build(dataset_cfg)
        except RuntimeError as error:
            raise ValueError(f'heal: folder={folder!r}: {error}') from error
    # A file system lists its files in any order.
    paths = [dataset.get_data_info(number)['img_path'] for number in range(len(dataset))]
    return Subset(dataset, sorted(range(len(dataset)), key=paths.__getitem__))


def _pipeline(dataset_cfg: ConfigDict) -> list:
    """The pipeline of the innermost dataset, below wrappers such as RepeatDataset."""
    while 'pipeline' not in dataset_cfg:
        dataset_cfg = dataset_cfg.get('dataset') or dataset_cfg['datasets'][0]
    return dataset_cfg['pipeline']


def _set_pipeline(dataset_cfg: ConfigDict, pipeline: list) -> None:
    if 'dataset' in dataset_cfg:
        # A wrapper such as MultiImageMixDataset has a pipeline of its own: training only.
        if 'pipeline' in dataset_cfg:
            dataset_cfg['pipeline'] = []
        _set_pipeline(dataset_cfg['dataset'], pipeline)
    elif 'datasets' in dataset_cfg:
        for part in dataset_cfg['datasets']:
            _set_pipeline(part, pipeline)
    else:
        dataset_cfg['pipeline'] = copy.deepcopy(pipeline)


def tensor_forward(model: nn.Module) -> Callable[[Any], Any]:
    """Run an OpenMMLab model on a batch of its data loader, up to the raw outputs.

    In a detector on a plain ViT the patches that are only padding, and the class token that nobody
    reads, are told to the observers: they count nowhere.
    """
    backbone = getattr(model, 'backbone', None)
    tells = _is_plain_vit(backbone)
    if tells:
        backbone.counted_tokens = None

    def forward(batch: dict) -> Any:
        data = model.data_preprocessor(batch, False)
        if tells:
            backbone.counted_tokens = _counted_tokens(backbone, data)
        return model(**data, mode='tensor')

    return forward


def forward_and_loss(
    model: nn.Module, observers: Sequence[Observer]
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], torch.Tensor] | None]:
    """How to run a model for some observers, and the loss that their gradients are of.

    That is the model's own loss where gradients are needed and there is no classifier to predict
    classes: a detector's, for which the calibration images need their labels.

    Returns:
        ``forward`` and ``loss`` of :func:`mcf_mm.pruning.calibrate`.
    """
    gradients = any(observer.needs_gradients for observer in observers)
    if not gradients or find_classifier(model) is not None:
        return tensor_forward(model), None

    def forward(batch: dict) -> dict:
        return model(**model.data_preprocessor(batch, False), mode='loss')

    def loss(batch: dict, losses: dict) -> torch.Tensor:
        return model.parse_losses(losses)[0] * len(batch['inputs'])

    return forward, loss


def _is_plain_vit(backbone: nn.Module | None) -> bool:
    """Whether it gives maps of its patches; YOLOS tells its own tokens."""
    return getattr(backbone, 'out_type', None) == 'featmap' and hasattr(backbone, 'cls_token')


def _counted_tokens(backbone: nn.Module, data: dict) -> torch.Tensor | None:
    """Which tokens of a batch count, bool ``(B, N)``; None where images do not say their size."""
    samples = data.get('data_samples')
    if not isinstance(samples, list) or not all('img_shape' in sample for sample in samples):
        return None
    inputs = data['inputs']
    patch = backbone.patch_embed.projection.kernel_size
    # As mmpretrain's patch embedding does, which completes the last patch with zeros.
    rows, columns = (-(-side // size) for side, size in zip(inputs.shape[-2:], patch, strict=True))
    counted = torch.zeros(len(inputs), rows, columns, dtype=torch.bool, device=inputs.device)
    for image, sample in zip(counted, samples, strict=True):
        height, width = sample.img_shape[:2]
        image[: -(-height // patch[0]), : -(-width // patch[1])] = True
    extra = counted.new_zeros(len(inputs), backbone.num_extra_tokens)
    return torch.cat((extra, counted.flatten(1)), 1)


def image_names(batch: dict) -> list[str]:
    """File of each image in a batch, for error messages."""
    samples = batch['data_samples']
    if isinstance(samples, dict):  # of mmdet's semi-supervised branches
        samples = [sample for branch in samples.values() for sample in branch if sample is not None]
    return [str(sample.get('img_path', 'without a file')) for sample in samples]
