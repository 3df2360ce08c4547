"""From irregular to regular sparsity: CRS (section 3.3) and X-Transformation (section 3.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcf_mm.pruning.structure import Sizes, Structure
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN


def regular_sparsity(scores: Tensor, tiebreak: Tensor, kept: int) -> Tensor:
    """CRS: keeps the same number of weights in every row, those with the largest scores.

    Args:
        scores: Importance, ``(O, I)``.
        tiebreak: Decides between equal scores, ``(O, I)``: |W| * rms(u) (ours); the smaller
            index after that.
        kept: Number of weights to keep in each row.

    Returns:
        The mask h(I) of eq. 4, bool ``(O, I)``, True where a weight stays.
    """
    order = tiebreak.argsort(dim=1, descending=True, stable=True)
    by_score = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    index = order.gather(1, by_score[:, :kept])
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, True)


@dataclass
class SparseFFN:
    """Importance and CRS mask of both layers of one FFN.

    Attributes:
        scores1: Importance of W1, ``(H, C)``.
        mask1: What CRS keeps of W1, bool ``(H, C)``.
        scores2: Importance of W2, ``(C, H)``.
        mask2: What CRS keeps of W2, bool ``(C, H)``.
    """

    scores1: Tensor
    mask1: Tensor
    scores2: Tensor
    mask2: Tensor

    @classmethod
    def from_scores(
        cls,
        scores: Sequence[Tensor],
        tiebreaks: Sequence[Tensor],
        kept: Sequence[int],
    ) -> 'SparseFFN':
        """CRS of both layers: each row of fc1 keeps C' inputs, each row of fc2 H' units."""
        masks = [
            regular_sparsity(score, tiebreak, number)
            for score, tiebreak, number in zip(scores, tiebreaks, kept, strict=True)
        ]
        return cls(scores[0], masks[0], scores[1], masks[1])

    @property
    def scores(self) -> tuple[Tensor, Tensor]:
        """Importance of W1 and of W2."""
        return self.scores1, self.scores2

    @property
    def masks(self) -> tuple[Tensor, Tensor]:
        """What CRS keeps of W1 and of W2."""
        return self.mask1, self.mask2

    @property
    def thresholds(self) -> tuple[float, float]:
        """Threshold of eq. 4 for both layers: the smallest score kept, median over rows."""
        first, second = (
            float(scores.double().masked_fill(~mask, torch.inf).amin(1).median())
            for scores, mask in zip(self.scores, self.masks, strict=True)
        )
        return first, second


def x_transformation(
    sparse: Mapping[str, SparseFFN], sizes: Sizes, shared_inputs: str = 'layer'
) -> Structure:
    """X-Transformation: one input set for all rows of a layer, chosen by vote (the vote is ours).

    Each row votes for the elements that CRS kept in it. First the hidden units, by the rows of W2;
    then the inputs, by those rows of W1 whose hidden unit stays.

    Args:
        sparse: FFNs by name, in the order of the forward pass.
        sizes: How many inputs and hidden units each keeps.
        shared_inputs: ``'layer'`` gives each FFN its own inputs; ``'network'`` the same to all
            FFNs of equal width (ours), which then must keep equally many. Defaults to ``'layer'``.

    Raises:
        ValueError: Inputs are to be shared and their numbers differ.
    """
    hiddens, votes, numbers = {}, {}, {}
    for name, ffn in sparse.items():
        own = sizes[name]
        numbers[name] = own.get('inputs', ffn.mask1.shape[1])
        kept = _elect(_votes(ffn.mask2, ffn.scores2), own.get('hidden', ffn.mask2.shape[1]))
        hiddens[name] = kept
        votes[name] = _votes(ffn.mask1[kept], ffn.scores1[kept])
    if shared_inputs == 'network':
        totals: dict[int, Tensor] = {}
        for vote in votes.values():
            width = vote.shape[1]
            totals[width] = totals[width] + vote if width in totals else vote
        votes = {name: totals[vote.shape[1]] for name, vote in votes.items()}
        for width in totals:
            wanted = {numbers[name] for name, vote in votes.items() if vote.shape[1] == width}
            if len(wanted) > 1:
                raise ValueError(
                    f"shared_inputs='network' needs FFNs of equal width to keep equally many "
                    f'inputs, got {sorted(wanted)}'
                )
    return Structure(
        {
            name: {'inputs': _elect(vote, numbers[name]), 'hidden': hiddens[name]}
            for name, vote in votes.items()
        }
    )


def _votes(mask: Tensor, scores: Tensor) -> Tensor:
    """Votes and summed scores of each element, ``(2, I)``."""
    return torch.stack((mask.sum(0).double(), scores.double().sum(0)))


def _elect(votes: Tensor, number: int) -> Tensor:
    """Ascending indices of the elements with most votes, ties by score, then index."""
    by_score = votes[1].argsort(descending=True, stable=True)
    by_votes = votes[0][by_score].argsort(descending=True, stable=True)
    return by_score[by_votes[:number]].sort().values.cpu()


#: Where the method may end: see table 3 of the paper.
STEPS = ('fis', 'crs', 'x_transformation')


def check_last_step(last_step: str, compensation: str) -> None:
    """Check where the method ends.

    Raises:
        ValueError: There is no such step, or nothing to compensate for.
    """
    if last_step not in STEPS:
        raise ValueError(f'last_step must be one of {STEPS}, got {last_step!r}')
    if compensation != 'none' and last_step != 'x_transformation':
        raise ValueError(
            f'compensation={compensation!r} needs rows that agree on what they drop: use '
            f"last_step='x_transformation', got {last_step!r}"
        )


def held_masks(
    units: Sequence[Unit], sparse: Mapping[str, SparseFFN]
) -> list[tuple[Tensor, Tensor]]:
    """Weights of the FFNs in ``sparse``, each with what CRS keeps of it (eq. 4)."""
    return [
        (linear.weight, mask)
        for unit in units
        if isinstance(unit, FFN) and unit.name in sparse
        for linear, mask in zip((unit.fc1, unit.fc2), sparse[unit.name].masks, strict=True)
    ]


def hold(masks: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set to zero what masks do not keep, in place."""
    for parameter, kept in masks:
        parameter.data.mul_(kept)
