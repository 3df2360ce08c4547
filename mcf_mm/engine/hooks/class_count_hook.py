"""Stops a run whose training set has more classes than its model."""

import re

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcf_mm.engine.networks import unwrapped
from mcf_mm.registry import HOOKS

#: Classifying heads of mmpretrain and mmdet; cascades have several. Proposals have no classes.
HEAD = re.compile(r'(head|bbox_head|roi_head\.bbox_head)(\.\d+)?')


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Stops a run whose training set has more classes than the head.

    A detector would learn the first class too many as background and say nothing; the others stop
    the loss without a name, or not at all. mmdet's NumClassCheckHook asks for equal numbers, which
    the public weights of YOLOS with 91 outputs for 80 classes do not have. ``tools/train.py`` adds
    this hook to every run.

    Raises:
        ValueError: The training set has more classes than a head.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.ClassCountHook')]
    """

    def before_train(self, runner: Runner) -> None:
        """Compares the heads with the metainfo of the training set, whose wrappers have it too."""
        classes = getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes') or ()
        for name, module in unwrapped(runner).named_modules():
            if not HEAD.fullmatch(name):
                continue
            outputs = getattr(module, 'class_ids', None)
            number = len(outputs) if outputs else getattr(module, 'num_classes', None)
            if isinstance(number, int) and number < len(classes):
                raise ValueError(
                    f'{name} ({type(module).__name__}) is for {number} classes and the training '
                    f'set has {len(classes)}: {", ".join(map(str, classes[:5]))}... Set its '
                    'num_classes, or metainfo=dict(classes=...) of the datasets'
                )
