"""What the closed form needs to know of queries and keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcf_mm.pruning.moments import require_images
from mcf_mm.pruning.observers import Observer
from mcf_mm.pruning.streams import Tokens, finite_images, gather, sum_over_processes
from mcf_mm.pruning.units import Attention

#: Share of the second moments of queries and keys in how much their directions matter (ours): the
#: loss may not feel a direction on the calibration images that others need.
PLAIN = 0.3


@dataclass
class Pairs:
    """How much each direction of the queries and keys of a head matters.

    The loss of an error ``q^T E k`` is ``|query^1/2 E key^1/2|^2``, up to a factor.

    Attributes:
        query: Double ``(heads, d, d)``.
        key: The same for the key.
        halves: As in :class:`Moments`.
    """

    query: Tensor
    key: Tensor
    halves: 'tuple[Pairs, Pairs] | None' = None


@dataclass
class PairSums:
    """Sums over some of the images.

    Attributes:
        moments: Second moments of query and key, double ``(heads, d, d)`` each.
        factors: Of the Kronecker form, for query and key; zero without gradients.
        images: How many images.
    """

    moments: list[Tensor]
    factors: list[Tensor]
    images: int = 0

    def __add__(self, other: 'PairSums') -> 'PairSums':
        return PairSums(
            [a + b for a, b in zip(self.moments, other.moments, strict=True)],
            [a + b for a, b in zip(self.factors, other.factors, strict=True)],
            self.images + other.images,
        )


class PairObserver(Observer):
    """Gathers :class:`Pairs` of an attention.

    With gradients, how the loss feels a matrix E between query and key: D = dL/dE of each image
    gives ``E D D^T`` for the query and ``E D^T D`` for the key (the factors of a Kronecker form of
    the Fisher matrix). A share of :data:`PLAIN` of both, and all of them without gradients, are
    second moments of query and key; of the key centred in each sequence, for what is added to all
    keys changes no attention.

    Args:
        unit: The attention.
        metric: Follow the gradients. Defaults to True.
    """

    unit: Attention

    def __init__(self, unit: Attention, metric: bool = True):
        super().__init__(unit, 'qk')
        self.needs_gradients = metric
        self.halves: list[PairSums] = []
        self.parts: list[Tensor] = []
        self.finite: Tensor | None = None

    def join(self, other: Observer) -> None:
        self.needs_gradients |= other.needs_gradients

    def attach(self, tokens: Tokens) -> list:
        self.tokens = tokens
        if not self.halves:
            self.halves = [PairSums(self._zeros(), self._zeros()) for _ in range(2)]
        return [
            place.module.register_forward_hook(
                lambda _, args, out, place=place: self._look(out, place.start, place.stop)
            )
            for place in self.unit.places('qk')
        ]

    def _zeros(self) -> list[Tensor]:
        heads, channels = self.unit.sizes['heads'], self.unit.sizes['qk']
        device = next(self.unit.module.parameters()).device
        shape = (heads, channels, channels)
        return [torch.zeros(shape, dtype=torch.double, device=device) for _ in range(2)]

    def _look(self, out: Tensor, start: int, stop: int | None) -> Tensor:
        if self.needs_gradients:
            out = out if out.requires_grad else out.detach().requires_grad_()
        values = out.detach()[..., start:stop]
        first = not self.parts  # of separate layers, that of the query
        self.parts.append(values)
        if sum(part.shape[-1] for part in self.parts) == 2 * self.unit.count('qk'):
            both, self.parts = torch.cat(self.parts, -1), []
            self._see(both)
        if self.needs_gradients and first:
            queries = self._by_head(values[..., : self.unit.count('qk')])
            out.register_hook(lambda grad: self._feel(queries, grad))
        return out

    def _by_head(self, values: Tensor) -> Tensor:
        """(B, N, heads, d), float, zero where a token does not count."""
        values, counted = self.tokens.split(self.unit, values)
        if counted is not None:
            values = values * counted[..., None]
        return values.unflatten(2, (-1, self.unit.sizes['qk']))

    def _see(self, both: Tensor) -> None:
        query, key = both.float().chunk(2, -1)
        key = key - key.mean(-2, keepdim=True)
        for place, part in enumerate((query, key)):
            part = self._by_head(part)
            if place == 0:
                self.finite = finite_images(part)
            for half, own in enumerate(self.halves):
                own.images += len(part[half::2]) * (place == 0)
                own.moments[place] += _outer(part[half::2].flatten(0, 1).transpose(0, 1))

    def _feel(self, queries: Tensor, grad: Tensor) -> None:
        grad = self._by_head(grad[..., : self.unit.count('qk')])
        felt = queries.permute(0, 2, 3, 1) @ grad.transpose(1, 2)  # D, (B, heads, d, d)
        fine = finite_images(felt)
        self.finite = fine if self.finite is None else self.finite.logical_and_(fine)
        for half, own in enumerate(self.halves):
            part = felt[half::2]
            own.factors[0] += (part @ part.mT).sum(0).double()
            own.factors[1] += (part.mT @ part).sum(0).double()

    def end_batch(self, names: Sequence[str] | None) -> None:
        self._check(self.finite, 'query or its gradient', names)
        self.finite = None

    def merge(self) -> None:
        self.count = sum(gather(self.count))
        for own in self.halves:
            own.images = sum(gather(own.images))
            own.moments = [sum_over_processes(values) for values in own.moments]
            own.factors = [sum_over_processes(values) for values in own.factors]

    def result(self) -> Pairs:
        require_images(self)
        one, other = self.halves
        pairs = self._pairs(one + other)
        if one.images and other.images:
            pairs.halves = self._pairs(one), self._pairs(other)
        return pairs

    def _pairs(self, sums: PairSums) -> Pairs:
        query, key = (value / sums.images for value in sums.moments)
        if self.needs_gradients:
            left, right = (value / sums.images for value in sums.factors)
            size = _traces(left).clamp(min=torch.finfo(left.dtype).tiny).sqrt()
            query, key = (
                (1 - PLAIN) * felt / size + PLAIN * size * plain / _traces(plain)
                for felt, plain in ((left, query), (right, key))
            )
        return Pairs(rounded(query), rounded(key))


def _traces(values: Tensor) -> Tensor:
    """Traces of ``(heads, d, d)``: ``(heads, 1, 1)``."""
    return values.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _outer(values: Tensor) -> Tensor:
    """Second moments of ``(heads, N, d)``: double ``(heads, d, d)``, a sum."""
    return (values.mT @ values).double()


def rounded(values: Tensor) -> Tensor:
    """Doubles that float32 holds, so that what is read from a file is what was written."""
    return values.float().double()
