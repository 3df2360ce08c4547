"""FFN irregular sparsity (FIS, section 3.2): counts how often a weight matters.

The product of an input element and a weight matters to an output when it lies outside a narrow
band around zero (eq. 3). The count over images is the importance of that weight.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.units import FFN

# Images per pass of the packed count: 63 to a word (the sign bit stays clear, so that shifts are
# logical), and 17 words keep every byte of a summed popcount below 256.
_WORD = 63
_IMAGES = 17 * _WORD
# Packed words held at a time; a few MB stay in the cache.
_BLOCK_WORDS = 1 << 18


def band_limit(weight: Tensor, scale: float = 1.0) -> float:
    """Half width n of the band (m, n) = (-n, n) of one layer.

    n = scale * (mean|W| + var(W)): the paper names these two statistics, the sum is ours.

    Args:
        weight: Weight of the layer, ``(O, I)``.
        scale: Widens or narrows the band. Defaults to 1.
    """
    weight = weight.detach().float()
    return float(scale * (weight.abs().mean() + weight.var()))


def count_outside(
    tokens: Tensor, weight: Tensor, limit: float, rows: Tensor | None = None
) -> Tensor:
    """Counts the images for which a product u[i] * W[o, i] falls outside (-limit, limit).

    Exact, as eq. 3 by brute force would be, but without its S * O * I products: for a fixed weight
    the images outside are those with the largest |u[i]|, so sorting each input once and looking
    the threshold up gives their number, and with ``rows`` their set as a bit string.

    Args:
        tokens: Input vectors u, ``(S, I)``.
        weight: Weight W, ``(O, I)``.
        limit: n of :func:`band_limit`.
        rows: Which outputs count for which image, bool ``(S, O)``. Defaults to all.

    Returns:
        Counts, int32 ``(O, I)``.
    """
    weight = weight.detach().float().abs()
    counts = torch.zeros(weight.shape, dtype=torch.int32, device=weight.device)
    for start in range(0, len(tokens), _IMAGES):
        block = slice(start, start + _IMAGES)
        magnitude, order = tokens[block].float().abs().T.contiguous().sort(dim=1)  # (I, S)
        outside = _num_outside(magnitude, weight.T.contiguous(), limit)  # (I, O)
        if rows is not None:
            outside = _count_members(order.flip(1), outside, rows[block])
        counts += outside.T
    return counts


def _num_outside(magnitude: Tensor, weight: Tensor, limit: float) -> Tensor:
    """Number of images with |u| * |W| >= limit, int64 ``(I, O)``.

    Args:
        magnitude: Ascending |u| of each input, ``(I, S)``.
        weight: |W| transposed, ``(I, O)``.
        limit: Half width of the band.
    """
    num_images = magnitude.shape[1]
    threshold = (limit / weight).nan_to_num_(nan=0.0, posinf=torch.inf)
    first = torch.searchsorted(magnitude, threshold)  # first image outside
    # The quotient above is rounded, and so is the product that defines the count: step to the
    # image where the product itself crosses the limit.
    while True:
        inner = magnitude.gather(1, (first - 1).clamp_(min=0)) * weight
        outer = magnitude.gather(1, first.clamp(max=num_images - 1)) * weight
        step = ((outer < limit) & (first < num_images)).long()
        step -= ((inner >= limit) & (first > 0)).long()
        if not step.any():
            return num_images - first
        first += step


def _count_members(order: Tensor, outside: Tensor, rows: Tensor) -> Tensor:
    """Of the first ``outside`` images in ``order``, how many are in ``rows``.

    Sets of images are bit strings, so one lookup, one AND and one popcount answer for 63 images.

    Args:
        order: Images by falling |u|, ``(I, S)``.
        outside: Length of the prefix, ``(I, O)``.
        rows: Membership, bool ``(S, O)``.
    """
    num_inputs, num_images = order.shape
    num_words = -(-num_images // _WORD)
    bit = torch.ones((), dtype=torch.int64, device=order.device) << (order % _WORD)
    word = order // _WORD

    padded = rows.new_zeros(num_words * _WORD, rows.shape[1])
    padded[:num_images] = rows
    shifts = torch.arange(_WORD, device=rows.device)
    members = (padded.T.reshape(-1, num_words, _WORD).long() << shifts).sum(-1)  # (O, words)

    counts = torch.empty_like(outside)
    step = max(1, _BLOCK_WORDS // (max(num_images, len(members)) * num_words))
    for start in range(0, num_inputs, step):
        block = slice(start, start + step)
        # prefix[i, k]: the set of the k images with the largest |u[i]|.
        prefix = bit.new_zeros(len(order[block]), num_images + 1, num_words)
        prefix[:, 1:].scatter_(2, word[block].unsqueeze(-1), bit[block].unsqueeze(-1))
        prefix = prefix.cumsum_(1)  # the bits differ, so a sum is a union
        index = outside[block].unsqueeze(-1).expand(-1, -1, num_words)
        counts[block] = _popcount(prefix.gather(1, index) & members)
    return counts


def _popcount(words: Tensor) -> Tensor:
    """Number of set bits over the last dimension, by the usual parallel sums."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = ((words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F).sum(-1)
    # Each of the eight bytes holds a sum below 256; fold them.
    words = (words & 0x00FF00FF00FF00FF) + ((words >> 8) & 0x00FF00FF00FF00FF)
    words = words + (words >> 16)
    return (words + (words >> 32)) & 0xFFFF


def top_fraction(scores: Tensor, fraction: float) -> Tensor:
    """Marks the largest ``fraction`` of each row of ``scores``, bool of the same shape."""
    number = max(1, round(fraction * scores.shape[1]))
    index = scores.topk(number, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, True)


def guided_rows(
    ffns: Sequence[FFN], seen: Seen, classifier: nn.Linear | None, guide: float = 0.5
) -> Iterator[tuple[FFN, Tensor | None, Tensor | None]]:
    """Follows each image's important elements from its class back to the first FFN (figure 1).

    The top fraction of |W_head[c, k] * cls[k]| for the predicted class c are the important outputs
    of the last FFN; those of |h[j]| * sum of |W2[k, j]| over them are its important hidden units,
    and its important inputs, found the same way, are the important outputs of the FFN before, for
    the residual stream keeps channel identity. The fraction is ours.

    Args:
        ffns: FFNs in forward order.
        seen: Their activations.
        classifier: Layer that scores the classes; None counts all rows.
        guide: Fraction of important elements in (0, 1]; 1 counts all rows. Defaults to 0.5.

    Yields:
        The FFN, last first, with its important outputs, bool ``(S, C)``, and hidden units, bool
        ``(S, H)``; None for all. Where the width changes (Swin) guidance ends.
    """
    important = None
    if classifier is not None and seen.output is not None and guide < 1:
        weight = classifier.weight.detach().float()[seen.classes]
        if weight.shape == seen.output.shape:
            important = top_fraction((weight * seen.output).abs(), guide)
    for ffn in reversed(ffns):
        hidden = None
        if important is not None and important.shape[1] != ffn.width:
            important = None
        if important is not None:
            reach = important.float() @ ffn.fc2.weight.detach().float().abs()
            hidden = top_fraction(seen[ffn, 'hidden'].tokens.abs() * reach, guide)
        yield ffn, important, hidden
        if hidden is not None:
            reach = hidden.float() @ ffn.fc1.weight.detach().float().abs()
            important = top_fraction(seen[ffn, 'inputs'].tokens.abs() * reach, guide)
