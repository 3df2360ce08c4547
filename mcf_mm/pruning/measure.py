"""Measures what a cut in one place does to the predictions of a network."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.compensation import compensate
from mcf_mm.pruning.criteria.base import Criterion, choose
from mcf_mm.pruning.find import find_classifier, find_units
from mcf_mm.pruning.gates import mask
from mcf_mm.pruning.policy import without_tokens
from mcf_mm.pruning.structure import Sizes, Structure
from mcf_mm.pruning.surgery import cut
from mcf_mm.pruning.swap import copies, replaced

#: Images on which cuts are measured (ours).
IMAGES = 64


@contextmanager
def pruned(
    model: nn.Module,
    sizes: Sizes,
    criterion: Criterion,
    seen: Seen,
    compensation: str = 'none',
    masked: bool = False,
) -> Iterator[nn.Module]:
    """Prune a network for a while, on copies of the units that lose something.

    Args:
        model: The dense network. Afterwards it has its own modules again, untouched.
        sizes: How much stays of which units; the others stay as they are.
        criterion: Chooses what goes.
        seen: What its observers saw of the dense network.
        compensation: See :func:`~mcf_mm.pruning.compensation.compensate`; without what comes after
            a cut. Defaults to ``'none'``.
        masked: Multiply what goes with 0 in place of a cut, without compensation. Tokens are
            dropped all the same. Defaults to False.
    """
    with replaced(model, copies(model, sizes)):
        units = find_units(model)
        seen = criterion.turn(units, without_tokens(sizes), seen)
        structure = choose(criterion, units, sizes, seen)
        if masked:
            tokens = {name: kinds for name, kinds in structure.items() if 'tokens' in kinds}
            cut(model, Structure(tokens))
            others = {name: kinds for name, kinds in structure.items() if name not in tokens}
            with mask(units, Structure(others)):
                yield model
        else:
            compensate(units, structure, seen, compensation)
            cut(model, structure)
            yield model


@torch.no_grad()
def log_scores(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> Tensor:
    """Logarithms of the predicted probabilities, ``(images, classes)``, double precision.

    Args:
        model: A classifier. Runs in evaluation mode; its modes are restored.
        batches: Batches of images.
        forward: Runs it on one batch. Defaults to ``model`` itself.

    Raises:
        ValueError: It has no classifier.
    """
    scores: list[Tensor] = []
    classifier = find_classifier(model)
    if classifier is None:
        raise ValueError(f'{type(model).__name__} has no classifier whose scores could be compared')
    handle = classifier.register_forward_hook(
        lambda module, args, out: scores.append(out.double().log_softmax(-1))
    )
    training = [part for part in model.modules() if part.training]
    model.train(False)
    try:
        for batch in batches:
            (forward or model)(batch)
    finally:
        handle.remove()
        for part in training:
            part.training = True
    return torch.cat(scores)


def divergence(scores: Tensor, wanted: Tensor) -> float:
    """Mean over images of KL(wanted || scores), in nats; both as :func:`log_scores` gives them."""
    return float(F.kl_div(scores, wanted, log_target=True, reduction='batchmean'))


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
        self.forward, self.compensation = forward, compensation
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
        with pruned(self.model, sizes, criterion, seen, self.compensation):
            scores = self._scores()
        return divergence(scores, self.wanted)

    def _scores(self) -> Tensor:
        return log_scores(self.model, self.batches, self.forward)


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
