"""How much the prediction depends on heads and hidden units: HSIC, gathered in small memory.

Hilbert-Schmidt independence criterion of Multi-Dimensional Model Compression of Vision Transformer
(Hou & Kung, arXiv 2201.00043). Over the B images of a batch it is ``trace(Kc Lc)``, K and L being
the Gram matrices of both sides and the index c standing for centred rows and columns.

Ours: it is divided by ``(B - 1)^2``, so that batches of different size have one scale and can be
averaged, and a large batch is split into parts of at most :data:`PART` images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcf_mm.pruning.observers import CalibrationError, Observer
from mcf_mm.pruning.streams import Rows, Tokens, gather
from mcf_mm.pruning.unit import Unit

#: Widths s of the Gaussians ``exp(-d^2 / (2 s^2))``, whose mean is the kernel.
WIDTHS = (1, 2, 4, 8, 16)
#: Most images in one Gram matrix (ours); the paper's batches have 128.
PART = 128
#: Every n-th token enters the distances of hidden units, so that this many or up to twice as many
#: do (ours): neighbouring tokens are alike, and all of 197 took half of the time of a forward pass.
TOKENS = 64
#: A value is constant whose deviation is less than this share of its mean: that is rounding (ours).
CONSTANT = 1e-6
#: Values that are looked at at once: they stay in the processor's cache.
_CHUNK = 2**19
#: A kernel below this is raised to it: numbers near the smallest float compute slowly.
_TINY = 1e-9


def standardise(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Standardise over images: ``(x - mean) / std``; what is constant becomes zero.

    The public release of the paper computes ``x - mean / std``, which is taken for a slip: the
    kernel would then depend on the scale of the activations.

    Args:
        values: ``(n, B, N)``.
        counted: Which tokens count, bool ``(B, N)``; the others become zero, as if they were at
            the mean of those that count (ours). None for all.
    """
    number: int | Tensor = values.shape[1]
    if counted is not None:
        counted = counted.to(values)
        number = counted.sum(0).clamp(min=1)
        values = values * counted
    # In passes that are fast: torch.var_mean along this dimension takes four times as long.
    mean = values.sum(1, keepdim=True) / number
    centred = values - mean
    if counted is not None:
        centred *= counted
    std = (centred.square().sum(1, keepdim=True) / number).sqrt()
    varies = std > CONSTANT * mean.abs()
    return centred.mul_(torch.where(varies, std.reciprocal(), 0))


def kernels(values: Tensor, share: float = 1) -> Tensor:
    """Kernels of all pairs of images, the mean of five Gaussians.

    Args:
        values: Standardised, ``(n, B, N)``.
        share: Share of the tokens that these are; squared distances are divided by it. Defaults
            to 1.

    Returns:
        ``(n, P)``, the P = B (B - 1) / 2 pairs of :func:`pairs_of`. An image with itself has 1.
    """
    images, widest = values.shape[1], 2 * WIDTHS[-1] ** 2 * share
    squares = values.square().sum(2)
    # -d^2 / (2 s^2) of the widest, from |a|^2 + |b|^2 - 2 a b.
    powers = torch.baddbmm(
        squares[:, :, None] + squares[:, None],
        values,
        values.mT,
        beta=-1 / widest,
        alpha=2 / widest,
    )
    first, second = pairs_of(images, values.device)
    power = powers.flatten(1).index_select(1, first * images + second).clamp_(max=0).exp_()
    total = power.clone()
    for _ in WIDTHS[1:]:
        power.clamp_(min=_TINY).square_().square_()  # half the width: to the power of four
        total += power
    return total.div_(len(WIDTHS))


def pairs_of(images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and second image of each pair, ``(P,)``."""
    first, second = torch.triu_indices(images, images, 1, device=device).unbind()
    return first, second


def squared(pairs: Tensor, images: int) -> Tensor:
    """Gram matrices ``(n, B, B)`` of kernels of pairs ``(n, P)``."""
    first, second = pairs_of(images, pairs.device)
    gram = torch.eye(images, dtype=pairs.dtype, device=pairs.device).repeat(len(pairs), 1, 1)
    gram[:, first, second] = gram[:, second, first] = pairs
    return gram


def hsic_with_scores(pairs: Tensor, scores: Tensor) -> Tensor:
    """HSIC of each z with the prediction, ``(n,)``, double.

    The kernel of the prediction is linear, on the softmax output minus its mean over images.

    Args:
        pairs: Kernels of pairs of images, ``(n, P)``.
        scores: Class scores ``(B, K)``.
    """
    images = len(scores)
    prediction = scores.detach().double().softmax(1)
    prediction = prediction - prediction.mean(0)
    gram = prediction @ prediction.T  # centred, so that K need not be
    first, second = pairs_of(images, scores.device)
    off_diagonal = pairs @ gram[first, second].to(pairs)
    return (2 * off_diagonal.double() + gram.trace()) / (images - 1) ** 2


def hsic_between(pairs: Tensor, images: int) -> Tensor:
    """HSIC of each z with each other, ``(n, n)``, double; the same kernel on both sides (ours)."""
    gram = squared(pairs.double(), images)
    gram = gram - gram.mean(1, keepdim=True)
    gram = (gram - gram.mean(2, keepdim=True)).flatten(1)
    return gram @ gram.T / (images - 1) ** 2


def channels_first(values: Tensor) -> Tensor:
    """Copy ``(B, N, n)`` to ``(n, B, N)``, by image: that stays in the processor's cache."""
    copy = values.new_empty(values.shape[2], *values.shape[:2])
    for place, image in enumerate(values):
        copy[:, place].copy_(image.T)
    return copy


def sum_sizes(values: Tensor, counted: Tensor | None) -> Tensor:
    """Sum of the absolute values ``(B, N, n)`` of the tokens that count: ``(B, n)``."""
    sizes = []
    for place, image in enumerate(values):  # one at a time stays in the processor's cache
        size = image.abs()
        sizes.append((size if counted is None else size * counted[place, :, None]).sum(0))
    return torch.stack(sizes)


@dataclass
class Dependence:
    """What the heads or hidden units of a unit have to do with the prediction.

    Attributes:
        prediction: HSIC of each element with the prediction, double ``(count,)``; a mean over
            batches, weighted by their images.
        between: HSIC of each head with each other, double ``(heads, heads)``; None of hidden
            units.
        size: Sum of the absolute activations over tokens, a mean over images, double ``(count,)``;
            None of heads.
    """

    prediction: Tensor
    between: Tensor | None = None
    size: Tensor | None = None


class DependenceObserver(Observer):
    """Gathers :class:`Dependence` of heads or of hidden units.

    z of a head is its output, the input of proj, averaged over its channels: one number for each
    token. z of a hidden unit is its activation, the input of fc2, at every n-th token
    (:data:`TOKENS`). All of it is computed in float32.
    Kernels are computed as the values pass by, and wait for the class scores: ``count B^2 / 2``
    floats for each unit, 0.6 GB in all of DeiT-S with 128 images in a batch.

    A batch of one image is left out: there is nothing to compare it with.

    Args:
        unit: An attention, or an FFN.
        kind: ``'heads'`` or ``'hidden'``.

    Raises:
        ValueError: It is another kind.
    """

    needs_scores = True

    def __init__(self, unit: Unit, kind: str):
        if kind not in ('heads', 'hidden'):
            raise ValueError(f"kind must be 'heads' or 'hidden', got {kind!r} of {unit.name}")
        super().__init__(unit, kind)
        # Sums over the images of one part of a batch, one row of doubles for each: a total that is
        # summed at the end does not depend on who has seen which batch.
        self.sums = Rows(first=16)
        self._forget()

    def _forget(self) -> None:
        """Drop what waits for the class scores."""
        # Of each part of the batch: number of images, kernels, and what is known already.
        self.parts: list[tuple[int, Tensor, Tensor]] = []
        self.finite: list[Tensor] = []

    def attach(self, tokens: Tokens) -> list:
        self.tokens = tokens
        self._forget()
        return [self._on(place, self._look) for place in self.unit.places(self.kind)]

    def _look(self, x: Tensor) -> None:
        values, counted = self.tokens.split(self.unit, x)  # (B, N, I)
        if self.kind == 'heads':
            values = values.unflatten(2, (self.unit.sizes['heads'], -1)).mean(3)
        parts = -(-len(values) // PART)
        masks = [None] * parts if counted is None else counted.tensor_split(parts)
        with torch.autocast(values.device.type, enabled=False):
            for part, mask in zip(values.tensor_split(parts), masks, strict=True):
                self._see(part, mask)

    def _see(self, values: Tensor, counted: Tensor | None) -> None:
        """Look at a part ``(B, N, count)`` of a batch."""
        images, number, count = values.shape
        size = sum_sizes(values, counted)  # (B, count)
        self.finite.append(size.isfinite().all(1))
        if images == 1:
            return
        step = max(1, number // TOKENS) if self.kind == 'hidden' else 1
        values, counted = values[:, ::step], None if counted is None else counted[:, ::step]
        share = values.shape[1] / number
        pairs = values.new_empty(count, images * (images - 1) // 2)
        width = max(16, _CHUNK // (images * max(images, values.shape[1])))
        for start in range(0, count, width):
            own = slice(start, start + width)
            z = standardise(channels_first(values[..., own]), counted)
            pairs[own] = kernels(z, share)
        if self.kind == 'heads':
            known = images * hsic_between(pairs, images).flatten()
        else:
            known = size.double().sum(0)
        self.parts.append((images, pairs, known))

    def end_batch(self, names: Sequence[str] | None) -> None:
        parts, looked = self.parts, self.finite
        self._forget()
        if not looked:
            return
        finite, scores = torch.cat(looked), self.tokens.scores
        if scores is None or scores.dim() != 2 or len(scores) != len(finite):
            told = 'none' if scores is None else f'scores of shape {tuple(scores.shape)}'
            raise ValueError(
                f'the dependence of the prediction on {self.name} needs class scores '
                f'({len(finite)}, classes), one row for each image, and the classifier gave {told}:'
                " take another criterion, such as 'activation'"
            )
        self._check(finite & scores.isfinite().all(1), 'input or prediction', names)
        start = 0
        for images, pairs, known in parts:
            own = hsic_with_scores(pairs, scores[start : start + images])
            start += images
            self.sums.append(torch.cat((own.new_tensor([images]), images * own, known))[None])
        self.sums.end_batch()

    def merge(self) -> None:
        self.sums.merge(next(self.unit.module.parameters()).device)
        self.count = sum(gather(self.count))

    def result(self) -> Dependence:
        if self.count and not len(self.sums):
            raise CalibrationError(
                f'calibration: all batches of {self.name} have one image, and dependence is '
                'between images: take batches of two images or more, best of 64 or 128'
            )
        total = self._total(self.sums)
        count = self.unit.sizes[self.kind]
        first, second = (total[1:] / total[0]).split((count, len(total) - 1 - count))
        if self.kind == 'heads':
            return Dependence(first, between=second.unflatten(0, (count, count)))
        return Dependence(first, size=second)
