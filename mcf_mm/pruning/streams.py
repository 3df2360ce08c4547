"""What observers share: which tokens count, rows that grow, sums over processes."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Attention

#: Tokens per image that enter the second moments (ours): evenly spaced, the first among them.
#: Neighbouring tokens are so alike that more cost time and gain nothing (tools/benchmarks).
MOMENT_TOKENS = 32


class Tokens:
    """Which tokens of the running batch count, for the observers.

    The CLS token stands for the image where the network has one that is read, the mean over tokens
    where it has none (section 3.2 of the MCF paper). A network tells by ``counted_tokens`` which
    tokens count, bool ``(B, N)``: YOLOS leaves out padding and the CLS token that nobody reads.
    Windows of Swin are padded with zeros, which are left out as well.

    Attributes:
        scores: Class scores ``(B, K)`` of the running batch, as the classifier gave them; None
            before, and of a network without classifier.
    """

    def __init__(self, model: nn.Module):
        names = (name.rpartition('.')[2] for name, _ in model.named_parameters())
        self.use_cls = 'cls_token' in names
        self.teller: Any = next((m for m in model.modules() if hasattr(m, 'counted_tokens')), None)
        self.images = 0
        self.scores: Tensor | None = None
        self.windows: dict[str, Tensor | None] = {}
        self.first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)

    def attach(self, units: Sequence[Unit]) -> list:
        """Hooks that follow the batch."""
        handles = []
        if self.first is not None:
            handles.append(self.first.register_forward_pre_hook(self._see_images))
        for unit in units:
            if isinstance(unit, Attention) and unit.layout.per_head_names:
                layer = unit.places('inputs')[0].module
                handles.append(
                    layer.register_forward_pre_hook(
                        lambda _, args, name=unit.name: self._see_windows(name, args[0])
                    )
                )
        return handles

    def _see_images(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.images = args[0].shape[0]

    def _see_windows(self, name: str, x: Tensor) -> None:
        counted = (x.detach() != 0).any(-1)
        self.windows[name] = None if bool(counted.all()) else counted

    def split(self, unit: Unit, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values by image, float ``(B, N, I)``, and which of their tokens count (None: all)."""
        values = values.detach()
        counted = None
        if unit.name in self.windows:
            windows = values.shape[0] // max(1, self.images)
            counted = self.windows[unit.name]
            if counted is not None:
                counted = counted.unflatten(0, (-1, windows)).flatten(1)
            values = values.unflatten(0, (-1, windows)).flatten(1, 2)
        values = values.reshape(values.shape[0], -1, values.shape[-1]).float()
        if self.teller is not None:
            told = self.teller.counted_tokens
            if told is not None and told.shape == values.shape[:2]:
                counted = told
        return values, counted


def moment_tokens(number: int) -> slice | list[int]:
    """Which of ``number`` tokens enter the second moments: evenly spaced, the first among them.

    A whole step is a slice, which copies nothing; where it would leave out more than a tenth of the
    tokens at the end, places are rounded down instead.
    """
    if number <= MOMENT_TOKENS:
        return slice(None)
    step = number // MOMENT_TOKENS
    if 10 * step * MOMENT_TOKENS >= 9 * number:
        return slice(0, step * MOMENT_TOKENS, step)
    return [place * number // MOMENT_TOKENS for place in range(MOMENT_TOKENS)]


def finite_images(values: Tensor) -> Tensor:
    """Which images have finite values alone: bool ``(B,)`` for ``(B, ...)``."""
    values = values.flatten(1)
    # A sum is one fast pass, and finite only if all values are.
    if values.device.type == 'cpu' and values.sum(1).isfinite().all():
        return torch.ones(len(values), dtype=torch.bool)
    return values.isfinite().all(1)


def gram(values: Tensor) -> Tensor:
    """``values.T @ values`` of ``(n, C)``, with two thirds of the work where C is large.

    Half of it is the other half turned over, which matrix products cannot use.
    """
    width = values.shape[1]
    if width <= 400:  # smaller products are no faster
        return values.T @ values
    half = width // 2
    one, other = values[:, :half], values[:, half:]
    result = values.new_empty(width, width)
    result[:half, :half], result[half:, half:] = gram(one), gram(other)
    result[:half, half:] = one.T @ other
    result[half:, :half] = result[:half, half:].T
    return result


class Rows:
    """A tensor that grows by rows, ``(S, ...)``.

    It doubles now and then. A small tensor kept for each batch would lie between the large ones
    that come and go, and hold the memory around it: gigabytes for 1,024 images.
    """

    def __init__(self, first: int = 1024):
        self.first = first
        self.rows: Tensor | None = None
        self.used = 0
        self.batches: list[int] = []

    def __len__(self) -> int:
        return self.used

    def append(self, rows: Tensor) -> None:
        """Copy ``rows`` to the end."""
        needed = self.used + len(rows)
        if self.rows is None or needed > len(self.rows):
            larger = rows.new_empty(max(self.first, 2 * needed), *rows.shape[1:])
            if self.rows is not None:
                larger[: self.used] = self.rows[: self.used]
            self.rows = larger
        self.rows[self.used : needed] = rows
        self.used = needed

    def end_batch(self) -> None:
        """Remember that the rows since the last call came from one batch."""
        self.batches.append(self.used - sum(self.batches))

    def merge(self, device: torch.device) -> None:
        """Gather the rows of all processes, in the order in which one would have seen them."""
        own = self.result().cpu() if len(self) else None
        parts = [
            rows.split(batches) if rows is not None else ()
            for rows, batches in gather((own, self.batches))
        ]
        # Process r has the batches r, r + n, r + 2n ...
        merged = [rows for turn in zip_longest(*parts) for rows in turn if rows is not None]
        if merged:
            self.rows = torch.cat(merged).to(device)
            self.used = len(self.rows)

    def result(self) -> Tensor:
        """What was appended; a copy, which is no inference tensor."""
        if self.rows is None:
            raise ValueError('no rows were appended')
        return self.rows[: self.used].clone()


def gather(value: Any) -> list[Any]:
    """What all processes have, by rank."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def sum_over_processes(values: Tensor) -> Tensor:
    """Add in one process and send the sum to all, so that they agree to the last bit."""
    distributed.reduce(values, dst=0)
    distributed.broadcast(values, src=0)
    return values
