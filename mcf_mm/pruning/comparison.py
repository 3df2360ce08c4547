"""The comparison of a pruned network with the dense one that healing makes small."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.distances import (
    blocks_distance,
    comparable,
    find_streams,
    logits_distance,
    recorded,
)
from mcf_mm.pruning.find import find_classifier, find_units
from mcf_mm.pruning.healing import Distance, Healing
from mcf_mm.pruning.precision import choose_bf16

Forward = Callable[[nn.Module, Any], Any]


def check_comparable(dense: nn.Module, run: Callable[[], Any], healing: Healing) -> dict[str, str]:
    """Find what can be compared of a network, before any time is spent.

    Args:
        dense: The network, in evaluation mode.
        run: Runs it on one batch.
        healing: The settings.

    Returns:
        Places of the residual stream, see :func:`find_streams`; none where ``blocks`` is 0.

    Raises:
        ValueError: Class scores are wanted where there are none, or nothing can be compared.
    """
    classifier = find_classifier(dense)
    if healing.logits and classifier is None:
        raise ValueError(
            f'heal: logits is {healing.logits}, but {type(dense).__name__} has no classifier; '
            'leave it out, or set logits=0'
        )
    wants_logits = classifier is not None and healing.logits != 0
    compared: dict[str, nn.Module] = {}
    if classifier is not None and wants_logits:
        compared['logits'] = classifier
    with recorded(compared) as outputs:
        streams = find_streams(dense, run)
    if wants_logits and 'logits' not in outputs:
        raise ValueError(
            f'heal: forward does not run the classifier of {type(dense).__name__}; set logits=0, '
            'or give a forward that does'
        )
    if healing.blocks == 0:
        streams = {}
    if not streams and not wants_logits:
        raise ValueError(
            f'heal: nothing of {type(dense).__name__} can be compared: forward runs no FFN '
            f'{"" if healing.blocks else "that counts (blocks is 0) "}and no classifier'
        )
    return streams


class Comparison:
    """Runs a student and its teacher on the same images, and compares what they put out.

    Args:
        student: The pruned network.
        dense: The dense one.
        forward: Runs a network on a batch.
        healing: Weights, temperature and precision.
        streams: Where the residual stream is seen, see :func:`check_comparable`.
    """

    def __init__(
        self,
        student: nn.Module,
        dense: nn.Module,
        forward: Forward,
        healing: Healing,
        streams: Mapping[str, str],
    ):
        self.student, self.dense, self.forward = student, dense, forward
        self.blocks, self.temperature = healing.blocks, healing.temperature
        self.logits = 1.0 if healing.logits is None else healing.logits
        device = next(student.parameters()).device
        self.bf16 = choose_bf16(healing.bf16, device, 'heal: bf16=True')
        self.drops_tokens = any(unit.is_pruned for unit in find_units(student).tokens)
        self._modules = []
        for model in (student, dense):
            modules = {name: model.get_submodule(path) for name, path in streams.items()}
            if self.logits and (classifier := find_classifier(model)) is not None:
                modules['logits'] = classifier
            self._modules.append(modules)

    def __call__(
        self, batch: Any, bf16: bool | None = None
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """The loss of a batch, with the distances of class scores and blocks that it is made of.

        Args:
            batch: What ``forward`` takes.
            bf16: Whether the networks run in mixed precision. Defaults to None: as healing says.

        Raises:
            ValueError: The networks put out other shapes.
        """
        student, dense = self._modules
        device = next(self.student.parameters()).device.type
        enabled = self.bf16 if bf16 is None else bf16
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            with torch.no_grad(), recorded(dense) as wanted:
                self.forward(self.dense, batch)
            with recorded(student) as seen:
                self.forward(self.student, batch)
        for name, target in wanted.items():
            if name not in seen or not comparable(seen[name], target, self.drops_tokens):
                got = tuple(seen[name].shape) if name in seen else 'nothing'
                raise ValueError(
                    f'heal: {name} puts out {got} in the student and {tuple(target.shape)} in the '
                    'dense network: give the network that the student was made of'
                )
        loss = torch.zeros(())
        logits: Tensor | float = 0.0
        blocks: Tensor | float = 0.0
        if 'logits' in wanted:
            logits = logits_distance(seen.pop('logits'), wanted.pop('logits'), self.temperature)
            loss = self.logits * self.temperature**2 * logits
        if wanted:
            blocks = blocks_distance(seen, wanted, centred=True)
            loss = loss + self.blocks * blocks
        return loss, logits, blocks

    @torch.no_grad()
    def measure(self, batches: Iterable[Any]) -> Distance:
        """The mean over the images of some batches, in single precision."""
        sums, count = [0.0, 0.0, 0.0], 0
        for batch in batches:
            number = count_images(batch)
            count += number
            for i, value in enumerate(self(batch, bf16=False)):
                sums[i] += float(value) * number
        return Distance(*(value / max(count, 1) for value in sums))


def count_images(batch: Any) -> int:
    """Images of a batch; 1 for batches that do not tell."""
    images = batch.get('inputs') if isinstance(batch, Mapping) else batch
    return len(images) if torch.is_tensor(images) else 1
