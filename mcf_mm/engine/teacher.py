"""The dense network teaches the pruned one while it recovers (ours, the paper has no teacher)."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning import find_classifier, find_ffns, find_units
from mcf_mm.pruning.distances import blocks_distance, comparable, logits_distance, recorded


class Teacher:
    """Adds losses that draw a student to its teacher.

    ``loss_teacher_logits`` is the Kullback-Leibler divergence of the class scores, times T^2
    (Hinton et al., 2015). ``loss_teacher_blocks`` is the mean squared distance between the
    outputs of the blocks, relative to the mean square of the teacher's, averaged over blocks:
    pruning FFNs leaves the width of the residual stream as it is, so they compare directly.

    Args:
        model: The dense network, an mmpretrain classifier or an mmdet detector. It is put into
            evaluation mode and needs no gradients any more.
        logits: Weight of the first loss. Defaults to 1.0; a detector has no classifier and
            needs 0.
        blocks: Weight of the second loss. Defaults to 0.
        temperature: T. Defaults to 1.

    Raises:
        ValueError: A weight is negative, none is positive, or ``logits`` is for a network without
            classifier.
    """

    def __init__(
        self, model: nn.Module, logits: float = 1.0, blocks: float = 0.0, temperature: float = 1.0
    ):
        self.check_model(model, logits, blocks, temperature)
        self.model = model.requires_grad_(False)
        self.model.train(False)
        self.logits, self.blocks, self.temperature = logits, blocks, temperature
        self.drops_tokens = False  # whether the student does

    @staticmethod
    def check_model(
        model: nn.Module, logits: float = 1.0, blocks: float = 0.0, temperature: float = 1.0
    ) -> None:
        """Check the arguments against a network."""
        check_teacher(logits, blocks, temperature)
        if logits and find_classifier(model) is None:
            raise ValueError(
                f'teacher: logits is {logits}, but {type(model).__name__} has no classifier; set '
                'logits=0 and blocks=1'
            )

    def attach(self, student: nn.Module) -> None:
        """Makes ``student.loss`` add the losses from now on; its state dict stays as it is."""
        own_loss = student.loss
        self.drops_tokens = any(unit.is_pruned for unit in find_units(student).tokens)

        def loss(inputs: Tensor, data_samples: Any = None, **kwargs) -> dict[str, Tensor]:
            with self._recorded(student) as seen:
                losses = own_loss(inputs, data_samples, **kwargs)
            with torch.no_grad(), self._recorded(self.model) as wanted:
                self.model(inputs, data_samples, mode='tensor')
            return {**losses, **self._compare(seen, wanted)}

        # As an attribute of the object: wrappers such as DistributedDataParallel still find it.
        student.loss = loss

    def _recorded(self, model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
        """Gives what the classifier and the blocks put out while the context is open."""
        modules = {}
        if self.logits:
            modules['logits'] = find_classifier(model)
        if self.blocks:
            modules |= {ffn.name: ffn.module for ffn in find_ffns(model)}
        return recorded(modules)

    def _compare(self, seen: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = {}
        if self.logits:
            divergence = logits_distance(seen.pop('logits'), wanted.pop('logits'), self.temperature)
            losses['loss_teacher_logits'] = self.logits * self.temperature**2 * divergence
        if self.blocks:
            for name, target in wanted.items():
                if not comparable(seen[name], target, self.drops_tokens):
                    raise ValueError(
                        f'teacher: blocks is {self.blocks}, but {name} puts out '
                        f'{tuple(seen[name].shape)} in training and {tuple(target.shape)} in the '
                        'teacher (DINO adds queries in training); set blocks=0'
                    )
            losses['loss_teacher_blocks'] = self.blocks * blocks_distance(seen, wanted)
        return losses


def check_teacher(logits: float = 1.0, blocks: float = 0.0, temperature: float = 1.0) -> None:
    """Raises a ValueError that names the first argument out of its range."""
    for name, value in (('logits', logits), ('blocks', blocks)):
        if not 0 <= value < float('inf'):
            raise ValueError(f'teacher: {name} is a weight and must not be negative, got {value}')
    if not logits and not blocks:
        raise ValueError('teacher: logits and blocks are both 0, one must be positive')
    if not 0 < temperature < float('inf'):
        raise ValueError(f'teacher: temperature must be positive, got {temperature}')
