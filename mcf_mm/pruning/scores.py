"""Learnable scores: gates that train with the weights, and what they say is kept.

Of SiDT (arXiv 2204.07722, *Searching Intrinsic Dimensions of Vision Transformers*) the abstract
alone is known. The design is ours, on published relatives (VTP, ViT-Slim): a score on each
dimension, the sum of their sizes in the loss, one threshold for each kind over the network.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.criteria.base import Criterion
from mcf_mm.pruning.gates import Gates
from mcf_mm.pruning.observers import Observer
from mcf_mm.pruning.policy import threshold
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Units

#: Kinds that can have scores.
KINDS = ('qk', 'v', 'hidden', 'inputs')
#: Fewest that a search leaves (ours): of q/k and v channels in each head, and of hidden units.
FLOORS = {'qk': 1, 'v': 1, 'hidden': 8, 'inputs': 1}


def learnable(units: Iterable[Unit], kinds: Iterable[str] = ('qk', 'v', 'hidden')) -> Gates:
    """Gates whose numbers are parameters, all 1 at first, of the device of the weights.

    They are no part of the network: hand them to an optimizer, and attach them.

    Args:
        units: Units of a network.
        kinds: Kinds that get scores, of :data:`KINDS`.

    Raises:
        ValueError: A kind cannot have scores.
    """
    kinds = list(kinds)
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f'kinds must be of {list(KINDS)}, got {sorted(unknown)}')
    gates = Gates(units, kinds)
    for key, ones in gates.values.items():
        gates.values[key] = nn.Parameter(ones)
    return gates


def penalty(gates: Gates) -> Tensor:
    """Sum of the sizes of all scores, a scalar; its gradient is their sign."""
    return torch.stack([score.abs().sum() for score in gates.values.values()]).sum()


def fold_as(gates: Gates, units: Iterable[Unit]) -> None:
    """Fold the numbers of ``gates`` into another network with the same units, as an average is."""
    other = Gates(units, {kind for _, kind in gates.values})
    for key, value in other.values.items():
        value.copy_(gates.values[key].detach())
    other.fold()


def searched_sizes(
    units: Units, scores: Mapping[tuple[str, str], Tensor], ratios: Mapping[str, float]
) -> dict[str, dict[str, int]]:
    """How many each unit keeps: those above one threshold for each kind over the network.

    Args:
        units: Units of the network.
        scores: Learned numbers ``(count,)`` by unit and kind; their sizes count, not their signs.
        ratios: Share of each kind to drop, in [0, 1).

    Returns:
        Sizes that drop the share, to within half an element of each layer (half a channel of
        each head of it) but for :data:`FLOORS`.
    """
    return threshold(units, {key: value.abs() for key, value in scores.items()}, ratios, FLOORS)


class Scores(Criterion):
    """Keeps what has the largest learned scores; per head equally many channels.

    Args:
        values: Learned numbers ``(count,)`` by unit and kind. Defaults to none yet.
    """

    kinds = KINDS

    def __init__(self, values: Mapping[tuple[str, str], Tensor] | None = None):
        self.values = dict(values or {})

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        return []

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        return self.values[unit.name, kind].abs()
