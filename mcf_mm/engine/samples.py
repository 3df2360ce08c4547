"""What the dense and the pruned network say of the same images, for the report of a run."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor

from mcf_mm.engine.networks import build_model
from mcf_mm.pruning.structure import check_whole
from mcf_mm.weights.checkpoint import dataset_meta, load_weights


@dataclass(frozen=True)
class Sample:
    """One image and what was said of it.

    Attributes:
        pixels: The image, RGB ``(H, W, 3)``, uint8.
        truth: Its class, None where the data set does not say.
        answers: Best class and its probability, by network.
    """

    pixels: np.ndarray
    truth: str | None
    answers: dict[str, tuple[str, float]]


@torch.inference_mode()
def classify_samples(
    networks: dict[str, tuple[Config, str | Path]], num_images: int
) -> list[Sample]:
    """Let classifiers say the classes of some images that the config evaluates.

    Args:
        networks: Config and weights of each classifier, by name; images are those of the first
            config, from all over its validation set.
        num_images: How many images; all where there are fewer.

    Raises:
        FileNotFoundError: There is no such checkpoint, or no such data.
        ValueError: No image is asked for, the first config evaluates nothing, or weights do not
            fit.
    """
    check_whole('samples', num_images, 1)
    cfg = next(iter(networks.values()))[0]
    loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    if not loader:
        raise ValueError('the config has neither val_dataloader nor test_dataloader')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(copy.deepcopy(loader.dataset))
    count = min(num_images, len(dataset))
    step = len(dataset) / max(1, count)
    data = [dataset[math.floor(i * step)] for i in range(count)]
    answers: dict[str, list[tuple[str, float]]] = {}
    classes: Sequence[str] = dataset.metainfo.get('classes') or ()
    for name, (config, checkpoint) in networks.items():
        model = build_model(config)
        meta, _ = load_weights(model, checkpoint)
        classes = classes or dataset_meta(config, meta).get('classes') or ()
        model.train(False)
        with DefaultScope.overwrite_default_scope(config.get('default_scope')):
            found = model.val_step(pseudo_collate(copy.deepcopy(data)))
        answers[name] = [
            (_name(classes, int(sample.pred_score.argmax())), float(sample.pred_score.max()))
            for sample in found
        ]
    return [
        Sample(
            _pixels(entry['inputs']),
            _truth(entry['data_samples'], classes),
            {name: own[i] for name, own in answers.items()},
        )
        for i, entry in enumerate(data)
    ]


def draw_samples(
    networks: dict[str, tuple[Config, str | Path]],
    images: Sequence[Path],
    score_threshold: float = 0.3,
) -> list[tuple[str, np.ndarray, list[int]]]:
    """Draw what detectors find in images, side by side.

    Args:
        networks: Config and weights of each detector, by name.
        images: Image files.
        score_threshold: Boxes with a higher score are drawn. Defaults to 0.3.

    Returns:
        Name of each image, the picture, RGB uint8, and the number of boxes of each detector.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: Weights do not fit, or an image cannot be read.
    """
    from mcf_mm.analysis.detections import Detector, draw_panels  # needs mmdet
    from mcf_mm.datasets.loading import LoadImageFromFile

    for image in images:
        # As tools/detect.py does: OpenCV would read a truncated file as grey.
        LoadImageFromFile().transform(dict(img_path=str(image)))
    detectors = [
        Detector(config, str(checkpoint), name) for name, (config, checkpoint) in networks.items()
    ]
    return [(image.name, *draw_panels(image, detectors, score_threshold)) for image in images]


def _name(classes: Sequence[str], label: int) -> str:
    return str(classes[label]) if label < len(classes) else f'class {label}'


def _truth(sample, classes: Sequence[str]) -> str | None:
    label = sample.get('gt_label')
    return None if label is None or label.numel() != 1 else _name(classes, int(label))


def _pixels(inputs: Tensor) -> np.ndarray:
    """The image as it goes to the preprocessor: mmcv reads BGR."""
    pixels = inputs.permute(1, 2, 0).clamp(0, 255).byte().numpy()
    return np.ascontiguousarray(pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels)
