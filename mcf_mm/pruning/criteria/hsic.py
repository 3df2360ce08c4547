"""Dependence on the prediction: Multi-Dimensional Model Compression of Vision Transformer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen, without_scores
from mcf_mm.pruning.criteria.base import Criterion
from mcf_mm.pruning.dependence import DependenceObserver
from mcf_mm.pruning.find import find_classifier
from mcf_mm.pruning.observers import Observer
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.unit import Unit

#: How much of its mean dependence on the other heads is taken from the score of a head.
REDUNDANCY = 0.1
#: Weight of the dependence in the score of a hidden unit; the rest is that of its size.
DEPENDENCE = 0.1


class HSIC(Criterion):
    """How much the prediction depends on a head or a hidden unit (Hou & Kung, arXiv 2201.00043).

    HSIC measures the dependence between z, one number for each token, and y, the softmax of the
    class scores, over the images of a batch: see :mod:`mcf_mm.pruning.dependence`.

    - Heads: z is the output averaged over the channels of the head. The score is ``HSIC(z, y)``
      minus 0.1 times the mean of its HSIC with the other heads of the layer.
    - Hidden units: z is the activation. The score is 0.1 of the HSIC plus 0.9 of the sum of the
      absolute activations, each brought to [0, 1] inside the layer.

    The paper takes batches of 128 images. Ours: HSIC is averaged over the batches of a calibration
    and divided by ``(B - 1)^2``; the release standardises otherwise, see
    :func:`~mcf_mm.pruning.dependence.standardise`.

    Raises:
        ValueError: The network has no classifier (from :meth:`prepare`).

    Example:
        >>> prune(model, batches, 'hsic', ratios=dict(heads=0.25, hidden=0.4))
    """

    kinds = ('heads', 'hidden')
    budget_kinds = frozenset(('heads', 'hidden'))

    def prepare(self, model: nn.Module) -> None:
        if find_classifier(model) is None:
            raise ValueError(without_scores(model))

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        return [
            DependenceObserver(unit, kind) for unit in units for kind in sizes.get(unit.name, ())
        ]

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        found = seen.dependence(unit, kind)
        if found.between is not None:  # of heads
            others = found.between.sum(1) - found.between.diag()
            return found.prediction - REDUNDANCY * others / max(1, len(others) - 1)
        if found.size is None:
            raise ValueError(f'calibration has not gathered the size of {kind} of {unit.name}')
        size = unit_interval(found.size)
        return DEPENDENCE * unit_interval(found.prediction) + (1 - DEPENDENCE) * size


def unit_interval(values: Tensor) -> Tensor:
    """Values brought to [0, 1]; zeros where all are equal."""
    values = values - values.min()
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
