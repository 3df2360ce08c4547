"""Stops a run whose data and model have other classes."""

import re
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcf_mm.datasets.classes import (
    check_labels,
    class_names,
    compare_classes,
    compare_order,
    few,
    folder_names,
    parts,
)
from mcf_mm.engine.networks import unwrapped
from mcf_mm.registry import HOOKS

#: Classifying heads of mmpretrain and mmdet; cascades have several. Proposals have no classes.
HEAD = re.compile(r'(head|bbox_head|roi_head\.bbox_head)(\.\d+)?')


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Stops a run whose data have more classes than the head, or other ones for validation.

    A detector would learn the first class too many as background and say nothing; the others stop
    the loss without a name, or not at all. mmdet's NumClassCheckHook asks for equal numbers, which
    the public weights of YOLOS with 91 outputs for 80 classes do not have. Folders of classes are
    numbered in the order of their names: with one more or less for validation, a class would be
    evaluated as its neighbour. ``tools/train.py`` and ``tools/test.py`` add this hook to every run.

    A checkpoint that is evaluated says its classes too: none may have another label here.

    Raises:
        ValueError: The training, validation or test set has more classes than a head, or a label
            out of its range; the classes of training and validation differ, or those of a config
            and its folders are in another order; or the training set has not a single box.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.ClassCountHook')]
    """

    def __init__(self) -> None:
        self.trained_on: list[str] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the class names that a checkpoint was trained on."""
        data = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        self.trained_on = list(data.get('classes') or ())

    def before_train(self, runner: Runner) -> None:
        """Compares the training set with the heads and with the validation set."""
        training = runner.train_dataloader.dataset
        _check(runner, training, 'training set')
        boxes = [getattr(part, 'has_boxes', True) for part in parts(training)]
        if not any(boxes):
            raise ValueError(
                'the training set has not a single box: its annotation files '
                f'{[part.ann_file for part in parts(training)]} list no objects'
            )
        loader = getattr(runner.val_loop, 'dataloader', None)
        if loader is not None:
            _check(runner, loader.dataset, 'validation set')
            compare_classes(training, loader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Compares the validation set with the heads, where nothing is trained."""
        if runner._train_loop is None or isinstance(runner._train_loop, dict):
            _check(runner, runner.val_dataloader.dataset, 'validation set')
            compare_order(self.trained_on, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Compares the test set with the heads and with the classes of the checkpoint."""
        _check(runner, runner.test_dataloader.dataset, 'test set')
        compare_order(self.trained_on, runner.test_dataloader.dataset)


def _check(runner: Runner, dataset: Any, title: str) -> None:
    folders = folder_names(dataset)
    classes = class_names(dataset) or folders
    numbers = {}
    for name, module in unwrapped(runner).named_modules():
        if HEAD.fullmatch(name):
            outputs = getattr(module, 'class_ids', None)
            number = len(outputs) if outputs else getattr(module, 'num_classes', None)
            if isinstance(number, int) and not isinstance(number, bool):
                numbers[f'{name} ({type(module).__name__})'] = number
    for name, number in numbers.items():
        if number < len(classes):
            raise ValueError(
                f'{name} is for {number} classes and the {title} has {len(classes)}: '
                f'{few(classes)}. Set its num_classes, or metainfo=dict(classes=...) of the '
                'datasets'
            )
    if numbers:
        name = min(numbers, key=numbers.get)
        for part in parts(dataset):
            check_labels(part, name, numbers[name], title)
