"""Makes every epoch independent of what was drawn before it, so that a resumed run is the same."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from torch import Tensor
from torch.utils.data import get_worker_info

from mcf_mm.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds Python, NumPy and torch at the start of each epoch, from seed, epoch and rank.

    MMEngine seeds the order of the images by epoch, but neither keeps nor restores the state of
    the random generators that augmentation, dropout and drop path draw from: a run that goes on
    after a crash would be another run. With this hook (ours) it ends with the same weights. The
    workers of the data loader are seeded too, each on its own; they are not started anew, and
    unlike MMEngine's, those that are do not repeat the augmentation of the first epoch.
    ``tools/train.py`` adds it to every run.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.EpochSeedHook')]
    """

    # Before every hook that may draw.
    priority = 'VERY_HIGH'

    def __init__(self):
        # Workers that live on see in shared memory which epoch it is.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def before_train(self, runner: Runner) -> None:
        """Lets the workers know how to seed; none has been started yet."""
        loader = runner.train_dataloader
        if loader.num_workers > 0:
            # Workers that start draw their seeds from the global generator, those that live on do
            # not: with a generator of its own the loader leaves the other one alone.
            loader.generator = torch.Generator()
            loader.worker_init_fn = functools.partial(
                _init_worker, loader.worker_init_fn, self.epoch, (runner.seed, runner.rank)
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds this process, and tells the workers to seed themselves."""
        self.epoch.fill_(runner.epoch)
        _seed(runner.seed, runner.rank, runner.epoch)


def _seed(*key: int) -> None:
    """Seeds all generators with a hash of ``key``."""
    set_random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _init_worker(
    init: Callable[[int], None] | None, epoch: Tensor, key: tuple[int, int], number: int
) -> None:
    """Initialises a worker of a data loader.

    Args:
        init: What was to do so before; None for nothing.
        epoch: The running epoch, in shared memory.
        key: Seed and rank.
        number: Which worker this is.
    """
    if init is not None:
        init(number)
    dataset = get_worker_info().dataset
    # torch asks a data set for the images of a batch in this way, if it has such a method.
    dataset.__getitems__ = _SeededFetch(dataset, epoch, (*key, number))


class _SeededFetch:
    """Fetches the images of a batch; seeds before the first one of each epoch."""

    def __init__(self, dataset: Any, epoch: Tensor, key: tuple[int, ...]):
        self.fetch = getattr(dataset, '__getitems__', None)
        self.dataset, self.epoch, self.key = dataset, epoch, key
        self.seeded = None

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        epoch = int(self.epoch)
        if epoch != self.seeded:
            # One more number than the key of the main process: never the same stream.
            _seed(*self.key, epoch)
            self.seeded = epoch
        if self.fetch is not None:
            return self.fetch(indices)
        return [self.dataset[index] for index in indices]
