"""What the closed form needs of the calibration images: second moments and how the loss feels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcf_mm.pruning.observers import CalibrationError, Observer
from mcf_mm.pruning.solves import RIDGE
from mcf_mm.pruning.streams import (
    MOMENT_TOKENS,
    Tokens,
    finite_images,
    gather,
    gram,
    sum_over_processes,
)
from mcf_mm.pruning.unit import Unit

#: Share of the moments that weighs tokens by how the loss feels them (ours); the rest of the
#: moments weighs them equally, so that the solves stay well-posed.
FELT = 0.5
#: The golden ratio: multiples of it, modulo 1, lie evenly.
_GOLDEN = 0.6180339887498949


@dataclass
class Moments:
    """Second moments of what a linear layer reads, and the metric of what it gives.

    Attributes:
        second: ``E [x, 1] [x, 1]^T``, double ``(I + 1, I + 1)``.
        metric: ``E sum g g^T``, g the gradient of the loss with respect to the output at one
            token, the sum over tokens, the mean over images; double ``(O, O)``. None without
            gradients.
        tokens: How many tokens were taken.
        halves: The same of every other image, and of the images between, in single precision to
            save memory: what is solved on one half is judged on the other. None where it was read
            from a file.
        ridge: Ridge term of solves, see :func:`~mcf_mm.pruning.solves.regularise`.
    """

    second: Tensor
    metric: Tensor | None
    tokens: int
    ridge: float = RIDGE
    halves: 'tuple[Moments, Moments] | None' = None

    def double(self) -> 'Moments':
        """A half in double precision, for solves."""
        metric = None if self.metric is None else self.metric.double()
        return Moments(self.second.double(), metric, self.tokens, self.ridge)

    @property
    def mean(self) -> Tensor:
        """Mean of the inputs, ``(I,)``."""
        return self.second[:-1, -1]

    @property
    def covariance(self) -> Tensor:
        """Centred second moments of the inputs, ``(I, I)``."""
        return self.second[:-1, :-1] - torch.outer(self.mean, self.mean)


def sample_tokens(values: Tensor, counted: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Which tokens of each image enter the moments, and how many each of them stands for.

    Evenly spaced ones, other ones in each image (ours: neighbours are so alike that more cost time
    and gain little). The first token, which may be the CLS token, is always among them.

    Args:
        values: ``(B, N, I)``.
        counted: Which tokens count, bool ``(B, N)``; None for all.

    Returns:
        Indices ``(B, n)``, None for all, and weights ``(B, n)``.
    """
    images, number = values.shape[:2]
    share = torch.ones(images, number, device=values.device)
    if counted is not None:
        share = counted.to(share)
    if number <= MOMENT_TOKENS:
        return None, share
    step = (number - 1) / (MOMENT_TOKENS - 1)
    shift = torch.arange(images, dtype=torch.double)[:, None] * _GOLDEN % 1
    places = (torch.arange(MOMENT_TOKENS - 1, dtype=torch.double) + shift) * step
    others = 1 + places.long().clamp(max=number - 2)
    chosen = torch.cat((torch.zeros(images, 1, dtype=torch.long), others), 1).to(values.device)
    share[:, 1:] *= step
    return chosen, share.gather(1, chosen)


def take(values: Tensor, chosen: Tensor | None) -> Tensor:
    """The chosen tokens of ``(B, N, I)``."""
    if chosen is None:
        return values
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[2]))


class MomentObserver(Observer):
    """Gathers :class:`Moments` of the layer that reads a kind: fc1, fc2 or proj.

    Each image counts as much as the others.

    Args:
        unit: What is observed.
        kind: A kind with a layer that reads it: ``'inputs'``, ``'hidden'``, ``'v'`` or ``'heads'``.
        metric: Also follow the gradients: the metric, and moments half of which weigh each token of
            an image by the square of the gradient there. Defaults to True.
    """

    def __init__(self, unit: Unit, kind: str, metric: bool = True):
        super().__init__(unit, kind)
        self.needs_gradients = metric
        self.layer = dict(unit.consumers())['v' if kind == 'heads' else kind]
        self.halves: list[Sums] = []
        self.finite: Tensor | None = None

    @property
    def key(self) -> tuple:
        return type(self).__name__, self.unit.name, 'v' if self.kind == 'heads' else self.kind

    def join(self, other: Observer) -> None:
        self.needs_gradients |= other.needs_gradients

    def attach(self, tokens: Tokens) -> list:
        self.tokens = tokens
        if not self.halves:
            self.halves = [Sums.zeros(self.layer, self.needs_gradients) for _ in range(2)]
        handles = [self.layer.register_forward_pre_hook(lambda _, args: self._look(args[0]))]
        if self.needs_gradients:
            handles.append(self.layer.register_forward_hook(lambda _, args, out: self._follow(out)))
        return handles

    def _look(self, x: Tensor) -> None:
        values, counted = self.tokens.split(self.unit, x)  # (B, N, I)
        self.finite = finite_images(values)
        chosen, share = sample_tokens(values, counted)
        values = take(values, chosen)
        values = torch.cat((values, values.new_ones(*values.shape[:2], 1)), 2)
        for half, own in enumerate(self.halves):
            own.tokens += int((share[half::2] > 0).sum())
        if self.needs_gradients:
            self.kept = values, chosen, share
        else:
            self._add(values, normalised(share))

    def _add(self, values: Tensor, share: Tensor) -> None:
        for half, own in enumerate(self.halves):
            own.second += weighted_moments(values[half::2], share[half::2])
            own.images += len(values[half::2])

    def _follow(self, out: Tensor) -> Tensor:
        # The parameters are frozen: the first observed value is where the graph begins.
        out = out if out.requires_grad else out.detach().requires_grad_()
        out.register_hook(self._feel)
        return out

    def _feel(self, grad: Tensor) -> None:
        grad, counted = self.tokens.split(self.unit, grad)
        if counted is not None:
            grad = grad * counted[..., None]
        fine = finite_images(grad)
        self.finite = fine if self.finite is None else self.finite.logical_and_(fine)
        values, chosen, share = self.kept
        felt = grad.square().sum(2)
        if chosen is not None:
            felt = felt.gather(1, chosen)
        # Each image weighs as much as the others: a single loss says little about its size.
        felt, plain = normalised(felt * share), normalised(share)
        part = FELT * (felt.sum(1, keepdim=True) > 0)  # no gradient, no opinion
        self._add(values, (1 - part) * plain + part * felt)
        for half, own in enumerate(self.halves):
            flat = grad[half::2].flatten(0, 1)
            own.metric += gram(flat).double()

    def end_batch(self, names: Sequence[str] | None) -> None:
        self._check(self.finite, 'input or gradient', names)
        self.finite = None

    def merge(self) -> None:
        self.count = sum(gather(self.count))
        for own in self.halves:
            own.images, own.tokens = map(sum, zip(*gather((own.images, own.tokens)), strict=True))
            own.second = sum_over_processes(own.second)
            if self.needs_gradients:
                own.metric = sum_over_processes(own.metric)

    def result(self) -> Moments:
        require_images(self)
        # The sums are the largest thing in memory: they go as the results come.
        (one, other), self.halves = self.halves, []
        whole = Sums(
            one.second + other.second,
            one.metric + other.metric,
            one.images + other.images,
            one.tokens + other.tokens,
        )
        moments = self._moments(whole).double()
        if one.images and other.images:
            moments.halves = self._moments(one), self._moments(other)
        return moments

    def _moments(self, sums: 'Sums') -> Moments:
        """In single precision, so that what is read from a file is what was written."""
        metric = (sums.metric / sums.images).float() if self.needs_gradients else None
        return Moments((sums.second / sums.second[-1, -1]).float(), metric, sums.tokens)


@dataclass
class Sums:
    """Sums over some of the images; see :class:`Moments`.

    Attributes:
        second: Double ``(I + 1, I + 1)``.
        metric: Double ``(O, O)``; ``(0, 0)`` without gradients.
        images: How many images.
        tokens: How many tokens of theirs.
    """

    second: Tensor
    metric: Tensor
    images: int = 0
    tokens: int = 0

    @classmethod
    def zeros(cls, layer: nn.Linear, gradients: bool) -> 'Sums':
        """Sums over no image."""
        given, read = layer.weight.shape
        second = torch.zeros(read + 1, read + 1, dtype=torch.double, device=layer.weight.device)
        side = given if gradients else 0
        return cls(second, second.new_zeros(side, side))


def normalised(share: Tensor) -> Tensor:
    """Weights ``(B, n)`` that add up to 1 for each image, or are all zero."""
    return share / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)


def weighted_moments(values: Tensor, share: Tensor) -> Tensor:
    """Second moments of ``(B, N, I)`` with weights ``(B, N)``: double ``(I, I)``, a sum."""
    flat = (values * share.sqrt()[..., None]).flatten(0, 1)
    return gram(flat).double()


def require_images(observer: Observer) -> None:
    """Check that an observer has seen images.

    Raises:
        CalibrationError: It has not.
    """
    if observer.count == 0:
        raise CalibrationError(
            f'calibration: {observer.name} was not run: the data loader is empty or evaluation '
            'does not use it (no images)'
        )
