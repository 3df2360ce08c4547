"""Samplers, registered in :data:`mcf_mm.registry.DATA_SAMPLERS`."""

import math
from collections.abc import Iterator, Sized

import torch
from mmengine.dataset import DefaultSampler

from mcf_mm.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ShortEpochSampler(DefaultSampler):
    """Epochs of a fixed number of images that go through the set one after the other.

    Pruning takes one epoch for each FFN. Where a whole pass over the images is more than is
    wanted between two FFNs, this makes the epoch shorter without leaving images out: every pass
    is a new random order, and an epoch is the next stretch of it.

    Args:
        dataset: The dataset.
        epoch_size: Images in one epoch, all ranks together.
        seed: Seed of the order, the same on all ranks. Defaults to None, a shared random one.

    Raises:
        ValueError: ``epoch_size`` is not from 1 to the size of the set.

    Example:
        >>> train_dataloader = dict(
        ...     sampler=dict(type='mcf_mm.ShortEpochSampler', epoch_size=100_000))
    """

    def __init__(self, dataset: Sized, epoch_size: int, seed: int | None = None):
        super().__init__(dataset, shuffle=True, seed=seed)
        if not 1 <= epoch_size <= len(dataset):
            raise ValueError(f'epoch_size must be from 1 to {len(dataset)}, got {epoch_size}')
        self.num_samples = math.ceil(epoch_size / self.world_size)
        self.total_size = self.num_samples * self.world_size

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.total_size
        positions = range(start + self.rank, start + self.total_size, self.world_size)
        orders: dict[int, torch.Tensor] = {}
        for position in positions:
            number, place = divmod(position, len(self.dataset))
            if number not in orders:
                generator = torch.Generator().manual_seed(self.seed + number)
                orders[number] = torch.randperm(len(self.dataset), generator=generator)
            yield int(orders[number][place])
