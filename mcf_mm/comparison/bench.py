"""One network, its calibration images and the images to report on: where methods meet."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from os.path import abspath
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import mcf_mm
from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.calibration_data import calibration_loader, image_names, tensor_forward
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model, model_costs
from mcf_mm.engine.prune import FirstShown, steps_bar
from mcf_mm.engine.runner import check_input
from mcf_mm.pruning import Costs, find_classifier
from mcf_mm.weights.checkpoint import load_weights

#: Calibration images at a time: room for the gradients of some methods.
BATCH_SIZE = 16
#: Called with what is being done, how much of it is done and how much there is.
Told = Callable[[str, int, int], None]


def variance(unit: Any, kind: str, seen: Any) -> torch.Tensor:
    """Score of VBP: the variance of each element; the mean of what goes is folded."""
    return seen[unit, kind].variance


class Bench:
    """A dense classifier, pruned by any method and reported on.

    Args:
        cfg: Its config; calibration takes images of the training set, reports those of the test
            set.
        checkpoint: Its weights.
        images: Calibration images.
        split: To choose settings: calibrate on one half of the calibration images and report on
            the other; the test set is not read. Defaults to False.
        told: Where progress goes. Defaults to None: to progress bars.
        keep: Whether the images to report on stay in memory, for many reports. Defaults to False.

    Raises:
        ValueError: The network has no classifier.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        images: int,
        split: bool = False,
        told: Told | None = None,
        keep: bool = False,
    ):
        self.cfg, self.images, self.split, self.told = cfg, images, split, told
        self.dense = build_model(cfg).to(get_device())
        if find_classifier(self.dense) is None:
            raise ValueError(
                f'{cfg.filename} builds a {type(self.dense).__name__} without classifier: top-1 '
                'can be compared of classifiers only'
            )
        load_weights(self.dense, checkpoint)
        self.shape = input_shape(cfg)
        if split:
            whole = calibration_loader(cfg, images, 0, BATCH_SIZE)
            self.report = [list(whole)[place] for place in range(1, len(whole), 2)]
        else:
            self.report = report_loader(cfg)
            if keep:
                self.report = list(self.report)

    @cached_property
    def costs(self) -> Costs:
        """Costs of the network for any sizes."""
        return model_costs(self.dense, self.shape)

    def loader(self, seed: int) -> Any:
        """Calibration images, in batches that leave room for gradients."""
        if self.split:
            return list(calibration_loader(self.cfg, self.images, 0, BATCH_SIZE))[::2]
        return calibration_loader(self.cfg, self.images, seed, BATCH_SIZE)

    def call(self, model: nn.Module, loader: Any, **arguments: Any) -> None:
        """:func:`mcf_mm.prune`, with its progress."""
        if arguments.get('compensation') == 'sequential':
            loader = list(loader)  # which goes over them once for each layer
        arguments |= dict(
            forward=tensor_forward(model),
            image_names=image_names,
            costs=self.costs if 'budget' in arguments else None,
        )
        if self.told is not None:
            batches = Counted(loader, 'calibrating', self.told)
            mcf_mm.prune(model, batches, progress=self.told, **arguments)
            return
        with steps_bar() as progress:
            batches = loader if isinstance(loader, list) else FirstShown(loader)
            mcf_mm.prune(model, batches, progress=progress, **arguments)

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """Parameters, MACs and top-1 on the images to report on."""
        own = count_complexity(model, self.shape)
        return {'params': own.params, 'macs': own.macs, **self.reported(model)}

    @torch.inference_mode()
    def reported(self, model: nn.Module) -> dict[str, Any]:
        """Top-1 on the images to report on, and how many those are."""
        model.train(False)
        right = images = 0
        report = self.report
        if self.told is not None:
            report = Counted(report, 'reporting', self.told)
        for batch in report:
            for sample in model.test_step(copy.deepcopy(batch)):
                right += int(sample.pred_score.argmax() == sample.gt_label[0])
                images += 1
        return {'top1': round(100 * right / images, 2), 'images': images}


class Counted:
    """Batches that tell how many of them are gone over, whenever they are."""

    def __init__(self, batches: Any, name: str, told: Told):
        self.batches, self.name, self.told = batches, name, told

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for done, batch in enumerate(self.batches):
            self.told(self.name, done, len(self.batches))
            yield batch


def report_loader(cfg: Config) -> DataLoader:
    """The images to report on: the test set of a config.

    Raises:
        ValueError: The config has no ``test_dataloader``.
    """
    if not cfg.get('test_dataloader'):
        raise ValueError(f'{cfg.filename} has no test_dataloader whose images could be reported on')
    loader = copy.deepcopy(cfg.test_dataloader)
    check_input(loader)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return Runner.build_dataloader(loader, seed=0)


def check_apart(report: Dataset, others: Dataset, what: str) -> list[str]:
    """Check that no image to report on is used otherwise.

    Args:
        report: The images to report on.
        others: Others.
        what: What those are for, for the error.

    Returns:
        What could not be checked.

    Raises:
        ValueError: A file is in both.
    """
    files = _files(report)
    if files is None or (own := _files(others)) is None:
        return [f'images are no files: whether those {what} are in the test set is not checked']
    if both := sorted(files & own):
        raise ValueError(
            f'{len(both)} of the {len(files)} images of test_dataloader are among those {what}, '
            f'the first {both[0]}: report on others, as with --cfg-options '
            'test_dataloader.dataset.ann_file=FILE'
        )
    return []


def _files(dataset: Dataset) -> set[str] | None:
    """The image files of a data set; None where its images are no files."""
    numbers: Iterable[int] = range(len(dataset))
    if isinstance(dataset, Subset):
        numbers, dataset = dataset.indices, dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        return None
    found = [dataset.get_data_info(number).get('img_path') for number in numbers]
    return None if None in found else {abspath(path) for path in found}
