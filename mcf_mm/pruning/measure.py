"""Measures what a cut in one place does to the predictions of a network."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.compensation import compensate
from mcf_mm.pruning.criteria.base import Criterion
from mcf_mm.pruning.find import find_classifier, find_units
from mcf_mm.pruning.sequential import copies, replaced
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.surgery import cut

#: Images on which cuts are measured (ours).
IMAGES = 64


class Probe:
    """Measures how far the class scores of a network go from those of the dense one.

    Args:
        model: The dense network. It stays as it is.
        batches: A few batches of images.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        compensation: See :func:`~mcf_mm.pruning.compensation.compensate`.
        progress: Called with what is being done, how much of it is done and how much there is.
            Defaults to None.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Callable[[Any], Any] | None = None,
        compensation: str = 'least_squares',
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.model, self.batches = model, batches
        self.forward, self.compensation = forward or model, compensation
        self.progress = progress or (lambda name, done, number: None)
        self.wanted: Tensor | None = None

    @property
    def can_measure(self) -> bool:
        """Whether there are images and class scores."""
        return len(self.batches) > 0 and find_classifier(self.model) is not None

    @torch.no_grad()
    def loss(self, sizes: Sizes, criterion: Criterion, seen: Seen) -> float:
        """The divergence when only some units are cut, a mean over images.

        Args:
            sizes: Of these units.
            criterion: Chooses what goes.
            seen: What its observers saw of the dense network.
        """
        if self.wanted is None:
            self.wanted = self._scores()
        with replaced(self.model, copies(self.model, sizes)):
            units = [unit for unit in find_units(self.model) if unit.name in sizes]
            turned = criterion.turn(units, sizes, seen)
            structure = criterion.select(units, sizes, turned)
            compensate(units, structure, turned, self.compensation)
            cut(self.model, structure)
            scores = self._scores()
        return float(F.kl_div(scores, self.wanted, log_target=True, reduction='batchmean'))

    @torch.no_grad()
    def _scores(self) -> Tensor:
        """Logarithms of the predicted probabilities, ``(images, classes)``."""
        scores: list[Tensor] = []
        handle = find_classifier(self.model).register_forward_hook(
            lambda module, args, out: scores.append(out.double().log_softmax(-1))
        )
        training = [part for part in self.model.modules() if part.training]
        self.model.train(False)
        try:
            for batch in self.batches:
                self.forward(batch)
        finally:
            handle.remove()
            for part in training:
                part.training = True
        return torch.cat(scores)


class Kept:
    """Batches that pass by, the first of which are kept.

    Args:
        batches: Batches of images: tensors, or mappings with ``inputs``.
        images: Whole batches are kept until they have so many images. Defaults to 64.

    Attributes:
        first: The batches that were kept.
    """

    def __init__(self, batches: Iterable[Any], images: int = IMAGES):
        self.batches, self.images = batches, images
        self.first: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        number = 0
        self.first = []
        for batch in self.batches:
            if number < self.images:
                self.first.append(batch)
            number += len(batch['inputs'] if isinstance(batch, Mapping) else batch)
            yield batch

    def keep(self) -> None:
        """Take the first batches without going on to the others."""
        number = 0
        for batch in self:
            number += len(batch['inputs'] if isinstance(batch, Mapping) else batch)
            if number >= self.images:
                break
