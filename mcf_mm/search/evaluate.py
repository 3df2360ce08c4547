"""The score of a policy: the network is pruned for a while and asked about images held out."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.criteria.base import Criterion
from mcf_mm.pruning.find import find_classifier
from mcf_mm.pruning.measure import divergence, log_scores, pruned
from mcf_mm.pruning.structure import Sizes

#: How a policy is tried: cut as it would be in the end, or with gates alone, as in the paper.
SCORES = ('cut', 'masked')
#: What is measured: top-1 with labels (the paper), or how near the dense network it stays (ours).
OBJECTIVES = ('accuracy', 'divergence')


class Evaluator:
    """Scores policies, the larger the better; the network is as before after each.

    Args:
        model: The dense classifier.
        batches: Images that were neither calibrated on nor are reported on; iterated over once
            for each score.
        criterion: Chooses what goes.
        seen: What its observers saw of the dense network in one calibration.
        labels: Class of each image, ``(images,)``, for ``'accuracy'``. Defaults to None.
        compensation: See :func:`~mcf_mm.pruning.compensation.compensate`. Defaults to ``'none'``.
        score: ``'cut'`` or ``'masked'``, which has no compensation. Defaults to ``'cut'``.
        objective: ``'accuracy'``, in percent, or ``'divergence'``, minus the mean of
            KL(dense || pruned) in nats. Defaults to ``'accuracy'``.
        forward: Runs the network on one batch. Defaults to ``model`` itself.

    Raises:
        ValueError: An argument is none of these, labels are missing or no classes of the network,
            or it has no class scores.

    Example:
        >>> evaluate = Evaluator(model, batches, OBS(), seen, labels, 'least_squares')
        >>> evaluate({'blocks.0.mlp': {'hidden': 400}})
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        criterion: Criterion,
        seen: Seen,
        labels: Tensor | None = None,
        compensation: str = 'none',
        score: str = 'cut',
        objective: str = 'accuracy',
        forward: Callable[[Any], Any] | None = None,
    ):
        check_score(score, objective, compensation)
        self.classes = check_classifier(model).out_features
        self.model, self.batches, self.forward = model, batches, forward
        self.criterion, self.seen, self.compensation = criterion, seen, compensation
        self.masked, self.objective, self.labels = score == 'masked', objective, labels
        if objective == 'accuracy':
            self._check_labels()
        self._dense: Tensor | None = None

    @torch.no_grad()
    def __call__(self, sizes: Sizes) -> float:
        """The score of the network with these sizes."""
        if self.objective == 'divergence':
            self._reference()  # before anything is cut
        with pruned(self.model, sizes, self.criterion, self.seen, self.compensation, self.masked):
            return self._of(self._scores())

    @torch.no_grad()
    def dense(self) -> float:
        """The score of the dense network."""
        self._dense = self._scores()
        return self._of(self._dense)

    def _reference(self) -> Tensor:
        """Scores of the dense network, computed once."""
        if self._dense is None:
            self._dense = self._scores()
        return self._dense

    def _of(self, scores: Tensor) -> float:
        if self.labels is None or self.objective == 'divergence':
            return -divergence(scores, self._reference())
        labels = self.labels.to(scores.device)
        if len(labels) != len(scores):
            raise ValueError(f'there are {len(labels)} labels for {len(scores)} images')
        return 100 * float((scores.argmax(-1) == labels).double().mean())

    def _scores(self) -> Tensor:
        return log_scores(self.model, self.batches, self.forward)

    def _check_labels(self) -> None:
        if self.labels is None:
            raise ValueError(
                "objective='accuracy' needs the class of each image, and the images have none: "
                "take objective='divergence'"
            )
        classes = self.classes
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes:
            raise ValueError(
                f'the labels of the images go from {int(self.labels.min())} to '
                f'{int(self.labels.max())}, the network has the classes 0 to {classes - 1}: '
                "take objective='divergence' or the dataset that it was trained on"
            )


def check_score(score: str, objective: str, compensation: str = 'none') -> None:
    """Check how policies are to be scored.

    Raises:
        ValueError: An argument is unknown, or ``compensation`` is not for a search.
    """
    if score not in SCORES:
        raise ValueError(f'score must be one of {SCORES}, got {score!r}')
    if objective not in OBJECTIVES:
        raise ValueError(f'objective must be one of {OBJECTIVES}, got {objective!r}')
    if compensation == 'sequential':
        raise ValueError(
            "compensation='sequential' takes a pass over the images for each layer of each trial: "
            "search with 'least_squares', and prune with 'sequential' in the end"
        )


def check_classifier(model: nn.Module) -> nn.Linear:
    """The classifier of a network; a ValueError where it has no class scores to compare."""
    classifier = find_classifier(model)
    if classifier is None:
        raise ValueError(
            f'a search compares class scores, and {type(model).__name__} has no classifier: '
            'search on the classifier that its backbone comes from'
        )
    return classifier
