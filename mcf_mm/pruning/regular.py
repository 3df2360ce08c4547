"""From irregular to regular sparsity: CRS (section 3.3) and X-Transformation (section 3.4)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mcf_mm.pruning.structure import Kept, Structure, kept_size


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
        scores: tuple[Tensor, Tensor],
        tiebreaks: tuple[Tensor, Tensor],
        input_ratio: float,
        hidden_ratio: float,
        multiple: int = 1,
    ) -> 'SparseFFN':
        """CRS of both layers: fc1 loses inputs, fc2 loses hidden units."""
        masks = [
            regular_sparsity(score, tiebreak, kept_size(score.shape[1], ratio, multiple))
            for score, tiebreak, ratio in zip(
                scores, tiebreaks, (input_ratio, hidden_ratio), strict=True
            )
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
        return tuple(
            float(scores.double().masked_fill(~mask, torch.inf).amin(1).median())
            for scores, mask in zip(self.scores, self.masks, strict=True)
        )


def x_transformation(
    sparse: Mapping[str, SparseFFN],
    input_ratio: float,
    hidden_ratio: float,
    shared_inputs: str = 'layer',
    multiple: int = 1,
) -> Structure:
    """X-Transformation: one input set for all rows of a layer, chosen by vote (the vote is ours).

    Each row votes for the elements that CRS kept in it. First the hidden units, by the rows of W2;
    then the inputs, by those rows of W1 whose hidden unit stays.

    Args:
        sparse: FFNs by name, in the order of the forward pass.
        input_ratio: Share of the inputs to drop, in [0, 1).
        hidden_ratio: Share of the hidden units to drop, in [0, 1).
        shared_inputs: ``'layer'`` gives each FFN its own inputs; ``'network'`` the same to all
            FFNs of equal width (ours). Defaults to ``'layer'``.
        multiple: See :func:`~mcf_mm.pruning.structure.kept_size`. Defaults to 1.

    Raises:
        ValueError: ``shared_inputs`` or a ratio is not one of the above.
    """
    if shared_inputs not in ('layer', 'network'):
        raise ValueError(f"shared_inputs must be 'layer' or 'network', got {shared_inputs!r}")
    hiddens, votes = {}, {}
    for name, ffn in sparse.items():
        number = kept_size(ffn.mask2.shape[1], hidden_ratio, multiple)
        hiddens[name] = _elect(_votes(ffn.mask2, ffn.scores2), number)
        kept = hiddens[name]
        votes[name] = _votes(ffn.mask1[kept], ffn.scores1[kept])
    if shared_inputs == 'network':
        totals: dict[int, Tensor] = {}
        for vote in votes.values():
            totals[vote.shape[1]] = totals.get(vote.shape[1], 0) + vote
        votes = {name: totals[vote.shape[1]] for name, vote in votes.items()}
    return Structure(
        {
            name: Kept(_elect(vote, kept_size(vote.shape[1], input_ratio, multiple)), hiddens[name])
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
