"""What is gathered while calibration images stream by; each can be merged across processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcf_mm.pruning.streams import Rows, Tokens, gather, gram, moment_tokens, sum_over_processes
from mcf_mm.pruning.unit import Place, Unit
from mcf_mm.pruning.units import Attention


class CalibrationError(ValueError):
    """Calibration met values that are not finite, or no images."""


@dataclass
class Activations:
    """Statistics of the values at one place of a unit.

    Attributes:
        tokens: The values for each image, ``(S, I)``: of the CLS token, or the mean over tokens.
        mean: Mean over images and tokens, ``(I,)``.
        mean_square: Mean square over images and tokens, ``(I,)``.
        covariance: Centred second moments, double ``(I, I)``; None unless asked for.
        samples: How many tokens the covariance is of; None without it.
    """

    tokens: Tensor
    mean: Tensor
    mean_square: Tensor
    covariance: Tensor | None = None
    samples: int | None = None

    @property
    def rms(self) -> Tensor:
        """Root mean square of each value, ``(I,)``."""
        return self.mean_square.sqrt()

    @property
    def variance(self) -> Tensor:
        """Variance of each value over images and tokens, ``(I,)``."""
        return (self.mean_square - self.mean.square()).clamp_(min=0)


class Observer:
    """Gathers something about one kind of one unit.

    Args:
        unit: What is observed.
        kind: Where: a kind of the unit, or ``'inputs'`` of an attention.

    Attributes:
        needs_gradients: Whether it needs a backward pass.
        needs_scores: Whether it needs the class scores, ``tokens.scores``, at the end of a batch.
        count: How many images it has seen.
    """

    needs_gradients = needs_scores = False

    def __init__(self, unit: Unit, kind: str):
        self.unit, self.kind = unit, kind
        self.count = 0

    @property
    def key(self) -> tuple:
        """Equal observers have equal keys; one of them is enough."""
        return type(self).__name__, self.unit.name, self.kind

    @property
    def name(self) -> str:
        """What is observed, for error messages."""
        paths = {id(module): path for path, module in self.unit.module.named_modules()}
        place = self.unit.places(self.kind)[0]
        return f'{self.unit.name}.{paths[id(place.module)]}'

    def join(self, other: 'Observer') -> None:
        """Take over what an observer with an equal key wants besides."""

    def attach(self, tokens: Tokens) -> list:
        """Hooks that look at a batch on its way.

        Args:
            tokens: Tells which tokens count.
        """
        raise NotImplementedError

    def end_batch(self, names: Sequence[str] | None) -> None:
        """Finish a batch, of images with these names; refuse values that are not finite."""

    def merge(self) -> None:
        """Take in what the other processes have seen."""

    def result(self) -> Any:
        """What criteria get."""
        raise NotImplementedError

    def _check(self, finite: Tensor | None, what: str, names: Sequence[str] | None) -> None:
        """Count the images of a batch, and refuse the first that is not ``finite``, bool (B,)."""
        if finite is None:
            return
        if not finite.all():
            image = int((~finite).nonzero()[0])
            told = names[image] if names else f'number {self.count + image}'
            raise CalibrationError(
                f'calibration: the {what} of {self.name} is not finite for image {told}; '
                'check that image and the weights of the network'
            )
        self.count += len(finite)

    def _total(self, rows: Rows) -> Tensor:
        """The sum of rows.

        Raises:
            CalibrationError: There are none.
        """
        if not len(rows):
            raise CalibrationError(
                f'calibration: {self.name} was not run: the data loader is empty or evaluation '
                'does not use it (no images)'
            )
        return rows.result().sum(0)

    def _on(self, place: Place, look) -> Any:
        """Call ``look`` with the values at a place of every forward pass."""

        def values(x: Tensor) -> Tensor:
            return x[..., place.start : place.stop]

        if place.side == 'output':
            return place.module.register_forward_hook(lambda _, args, out: look(values(out)))
        return place.module.register_forward_pre_hook(lambda _, args: look(values(args[0])))


class ActivationObserver(Observer):
    """Gathers :class:`Activations`.

    Args:
        unit: What is observed.
        kind: Where.
        covariance: Also gather second moments, for least squares. Defaults to False.
    """

    def __init__(self, unit: Unit, kind: str, covariance: bool = False):
        super().__init__(unit, kind)
        self.covariance = covariance
        self.rows = Rows()
        # Sums of u and of u^2 over one batch, (2, I) for each: a total that is summed at the end
        # does not depend on who has seen which batch.
        self.sums = Rows(first=16)
        self.token_count = self.moment_count = 0
        # Sum and sum of products, (I,) and (I, I), once there are some.
        self.second: tuple[Tensor, Tensor] | None = None

    @property
    def key(self) -> tuple:
        kind = 'v' if self.kind == 'heads' else self.kind  # the same place
        return type(self).__name__, self.unit.name, kind

    def join(self, other: Observer) -> None:
        if isinstance(other, ActivationObserver):
            self.covariance |= other.covariance

    def attach(self, tokens: Tokens) -> list:
        self.tokens = tokens
        self.parts: list[Tensor] = []
        places = self.unit.places(self.kind)
        return [self._on(place, lambda x: self._part(x, len(places))) for place in places]

    def _part(self, x: Tensor, number: int) -> None:
        self.parts.append(x)
        if len(self.parts) == number:
            values, self.parts = torch.cat(self.parts, -1) if number > 1 else x, []
            self._update(values)

    def _update(self, values: Tensor) -> None:
        u, counted = self.tokens.split(self.unit, values)  # (B, N, I)
        if counted is None:
            self.rows.append(u[:, 0] if self.tokens.use_cls else u.mean(1))
            flat = u.flatten(0, 1)
        else:
            # The tokens that count stand for the image.
            share = counted.to(u)[..., None]
            self.rows.append((u * share).sum(1) / share.sum(1).clamp(min=1))
            flat = u[counted]
        self.token_count += len(flat)
        # Sums over one batch are short enough for fp32; the totals are not.
        self.sums.append(torch.stack((flat.sum(0), flat.square().sum(0))).double()[None])
        if self.covariance:
            chosen = moment_tokens(u.shape[1])
            some = u[:, chosen]
            some = some.flatten(0, 1) if counted is None else some[counted[:, chosen]]
            self.moment_count += len(some)
            total, products = some.sum(0).double(), gram(some).double()
            if self.second is not None:
                total, products = self.second[0].add_(total), self.second[1].add_(products)
            self.second = total, products

    def end_batch(self, names: Sequence[str] | None) -> None:
        if self.rows.rows is None:
            return
        finite = self.rows.rows[self.count : len(self.rows)].isfinite().all(1)
        self._check(finite, self.unit.places(self.kind)[0].side, names)
        self.rows.end_batch()
        self.sums.end_batch()

    def merge(self) -> None:
        device = next(self.unit.module.parameters()).device
        self.rows.merge(device)
        self.sums.merge(device)
        counts = gather((self.token_count, self.moment_count))
        self.token_count, self.moment_count = map(sum, zip(*counts, strict=True))
        if self.covariance and self.rows.rows is not None:
            size = self.rows.rows.shape[1]
            zeros = torch.zeros(size, size, dtype=torch.double, device=device)
            # A process without images has no sums yet.
            total, products = self.second or (zeros[0], zeros)
            total, products = zeros[0] + total, zeros + products
            self.second = sum_over_processes(total), sum_over_processes(products)

    def result(self) -> Activations:
        mean, mean_square = (self._total(self.sums) / self.token_count).float()
        covariance = samples = None
        if self.second is not None:
            samples = self.moment_count
            centre, products = (total / self.moment_count for total in self.second)
            covariance = products - torch.outer(centre, centre)
        return Activations(self.rows.result(), mean, mean_square, covariance, samples)


class AttentionObserver(Observer):
    """Gathers how much attention each token gets, ``(heads, N)``, a mean over images.

    From the CLS token where the network reads one, otherwise from all tokens in the mean.

    Args:
        unit: An attention of a network whose images have equally many tokens.

    Raises:
        ValueError: It is an attention inside windows, where a token has no place of its own.
    """

    unit: Attention

    def __init__(self, unit: Attention):
        if unit.layout.per_head_names or hasattr(unit.module, 'num_pairs'):
            raise ValueError(f'{unit.name} attends inside windows: no token has a place in it')
        super().__init__(unit, 'qk')
        self.sums, self.parts = Rows(first=16), list[Tensor]()
        self.finite: Tensor | None = None

    def attach(self, tokens: Tokens) -> list:
        self.tokens = tokens
        return [self._on(place, self._part) for place in self.unit.places('qk')]

    def _part(self, x: Tensor) -> None:
        self.parts.append(x.detach())
        if sum(part.shape[-1] for part in self.parts) < 2 * self.unit.count('qk'):
            return
        both, self.parts = torch.cat(self.parts, -1), []
        layout = self.unit.layout
        module: Any = self.unit.module
        heads, channels = self.unit.sizes['heads'], self.unit.sizes['qk']
        query, key = both.unflatten(-1, (2, heads, channels)).permute(2, 0, 3, 1, 4)
        if layout.normalised(module):
            query, key = module.q_norm(query), module.k_norm(key)
        query, key = query.float(), key.float()
        if self.tokens.use_cls and self.tokens.teller is None:
            query = query[:, :, :1]
        scale = getattr(module, 'scaling', None) or layout.softmax_scale(module)
        received = (query @ key.mT * scale).softmax(-1).mean(2).detach()  # (B, heads, N)
        self.finite = received.flatten(1).isfinite().all(1)
        self.sums.append(received.sum(0).double()[None])

    def end_batch(self, names: Sequence[str] | None) -> None:
        self._check(self.finite, 'attention', names)
        self.sums.end_batch()

    def merge(self) -> None:
        self.sums.merge(next(self.unit.module.parameters()).device)
        self.count = sum(gather(self.count))

    def result(self) -> Tensor:
        return (self._total(self.sums) / self.count).float()


class GradientObserver(Observer):
    """Gathers how much the loss feels each element, ``(count,)``.

    The squared sum over tokens of value times gradient, a mean over images: the Fisher score (Liu
    et al., Group Fisher Pruning, ICML 2021). Of q/k it is the sum over query and key.

    Args:
        unit: What is observed.
        kind: Where.
    """

    needs_gradients = True

    def __init__(self, unit: Unit, kind: str):
        super().__init__(unit, kind)
        self.sums = Rows(first=16)
        self.finite: Tensor | None = None

    def attach(self, tokens: Tokens) -> list:
        self.tokens = tokens
        return [self._listen(place) for place in self.unit.places(self.kind)]

    def _listen(self, place: Place):
        def follow(x: Tensor) -> Tensor:
            # The parameters are frozen: the first observed value is where the graph begins.
            x = x if x.requires_grad else x.detach().requires_grad_()
            kept = x.detach()
            x.register_hook(lambda grad: self._see(place, kept, grad))
            return x

        if place.side == 'output':
            return place.module.register_forward_hook(lambda _, args, out: follow(out))
        return place.module.register_forward_pre_hook(lambda _, args: (follow(args[0]), *args[1:]))

    def _see(self, place: Place, values: Tensor, grad: Tensor) -> None:
        product = (values.float() * grad.float())[..., place.start : place.stop]
        product, counted = self.tokens.split(self.unit, product)
        if counted is not None:
            product = product * counted[..., None]
        per_image = product.sum(1).double()
        self.finite = per_image.isfinite().all(1)
        self.sums.append(per_image.square().sum(0, keepdim=True))

    def end_batch(self, names: Sequence[str] | None) -> None:
        self._check(self.finite, 'gradient', names)
        self.sums.end_batch()

    def merge(self) -> None:
        self.sums.merge(next(self.unit.module.parameters()).device)
        self.count = sum(gather(self.count))

    def result(self) -> Tensor:
        total = self._total(self.sums) / self.count
        count = self.unit.count('v' if self.kind == 'heads' else self.kind)
        if len(total) == 2 * count:  # query and key side by side
            total = total[:count] + total[count:]
        if self.kind == 'heads':
            total = total.unflatten(0, (self.unit.sizes['heads'], -1)).sum(1)
        return total.float()
