"""Healing: minutes of training without labels, after a network was pruned in one shot.

The small network is drawn to what the dense one puts out, behind each block and as class scores
(STARFISH, 2026). The loss is ``logits * T^2 * KL + blocks * distance``, the distance being the mean
over blocks of the squared error relative to the variance of the dense network's output.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.augmentation import augment
from mcf_mm.pruning.comparison import Comparison, Forward, check_comparable, count_images
from mcf_mm.pruning.distances import check_token_outputs
from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.heal_state import fingerprint, read_state, save_state
from mcf_mm.pruning.healing import Distance, Healed, Healing

#: Share of the training in which the learning rate grows; share of the minutes between two looks
#: at the images kept aside.
WARM_UP, LOOK = 0.05, 0.1
MAX_GRAD_NORM = 1.0


def heal(
    student: nn.Module,
    dense: nn.Module,
    batches: Iterable[Any],
    aside: Iterable[Any],
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    forward: Forward | None = None,
    state_file: str | Path | None = None,
    keep_state: bool = False,
    progress: Callable[[float, str], None] | None = None,
    **settings: Any,
) -> Healed:
    """Train a pruned network in place until it puts out what the dense one does; no labels.

    AdamW without weight decay, linear warm-up over 5 %, then cosine, gradients clipped at norm 1.
    Both networks see the same crops and run in evaluation mode: no dropout, no drop path, and
    buffers stay. Parameters that need no gradient stay, and so do gradients that were there. The
    weights that were best on the images kept aside are kept, so it never ends worse than it began
    on them. Given in epochs, it repeats itself; random generators of others are not touched.

    Args:
        student: The pruned network.
        dense: The network that it was made of; it stays as it is.
        batches: Images to train on, gone through once an epoch: batches ``(B, 3, H, W)`` or what
            ``forward`` takes, 16 images each where it was measured. A sequence is taken in random
            order; an object with a method ``shuffled(generator)`` gives its own.
            To be augmented, a batch is a tensor or a mapping with one as ``inputs`` and, where
            images are padded, their sizes ``[(h, w), ...]`` as ``image_sizes``.
        aside: Batches of other images, see :func:`split_aside`: which weights are best, is measured
            on them before, after each epoch, or after each tenth of the minutes.
        minutes: How long it takes; or
        epochs: How often the images are seen.
        forward: Runs a network on a batch, ``forward(model, batch)``. Defaults to ``model(batch)``.
        state_file: Where the state is written after each look at the images kept aside. If it
            exists, healing goes on there; given in epochs, it ends with the weights of one that was
            never interrupted. Removed at the end. Defaults to None.
        keep_state: Leave the state file at the end, for callers that write the result and then
            remove it. Defaults to False.
        progress: Called after each step with the share that is done and a text.
        **settings: As for :class:`Healing`.

    Returns:
        The distances before and after, and what was done.

    Raises:
        ValueError: An argument is out of range; there is nothing to compare; the state file is of
            other settings or weights; the loss is NaN or infinite (the student is as it was then).

    Example:
        >>> dense = copy.deepcopy(model)
        >>> prune(model, batches, compensation='least_squares')
        >>> training, aside = split_aside(batches)
        >>> print(heal(model, dense, training, aside, minutes=15))
    """
    healing = Healing.of(dict(settings, minutes=minutes, epochs=epochs))
    for name, value in (('batches', batches), ('aside', aside)):
        if isinstance(value, Iterator):
            raise ValueError(
                f'heal: {name} must be iterable more than once, got {type(value).__name__}; give '
                f'list({name})'
            )
    if healing.folder is not None and not hasattr(batches, 'shuffled'):
        raise ValueError(
            f'heal: folder={healing.folder!r} is read where a config says how; here, put its '
            'images into batches'
        )
    if student is dense:
        raise ValueError('heal: student and dense are one network; copy the dense one first')
    units = find_units(student)
    check_token_outputs(units, [unit.name for unit in units.tokens if unit.is_pruned], 'heal')
    forward = forward or (lambda model, batch: model(batch))
    with evaluating(student, dense):
        batch = next(iter(aside), None)
        if batch is None:
            raise ValueError('heal: aside has no batch: keep at least one image aside')
        streams = check_comparable(dense, lambda: forward(dense, batch), healing)
        compare = Comparison(student, dense, forward, healing, streams)
        healer = _Healer(compare, batches, aside, healing)
        healed = healer.run(state_file, progress or (lambda share, text: None))
    if state_file and not keep_state:
        Path(state_file).unlink(missing_ok=True)
    return healed


class _Healer:
    """One healing: its networks, its optimizer and how far it has come."""

    def __init__(
        self, compare: Comparison, batches: Iterable[Any], aside: Iterable[Any], healing: Healing
    ):
        self.compare, self.batches, self.aside, self.healing = compare, batches, aside, healing
        student = compare.student
        self.trained = {k: v for k, v in student.named_parameters() if v.requires_grad}
        if not self.trained:
            raise ValueError('heal: no parameter of the student needs a gradient')
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=healing.lr, weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(healing.seed)
        # Batches of an epoch.
        self.number = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
        if not self.number:
            raise ValueError('heal: batches has no batch: give at least one image to train on')
        self.steps = self.images = self.best_step = self.looked_step = 0
        self.spent, self.begun = 0.0, time.monotonic()
        self.look_seconds = 0.0

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.begun

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1; the last look at the images aside is part of the time."""
        if self.healing.epochs is not None:
            return min(1.0, self.steps / (self.number * self.healing.epochs))
        minutes = self.healing.minutes or 0  # one of the two is given
        return min(1.0, self.seconds / max(60 * minutes - self.look_seconds, 1e-9))

    def run(self, state_file: Any, progress: Callable[[float, str], None]) -> Healed:
        start = self.weights()
        gradients = {name: value.grad for name, value in self.trained.items()}
        try:
            self.start_hash = (
                fingerprint(self.compare.student, self.compare.dense) if state_file else ''
            )
            self.resume_or_begin(state_file, start)
            self.train(state_file, progress)
        except BaseException:
            self.put(start)
            raise
        finally:
            for name, value in self.trained.items():
                value.grad = gradients[name]
        self.put(self.best)
        best, done = (steps / self.number for steps in (self.best_step, self.steps))
        return Healed(
            self.before, self.after, best, done, self.images, self.seconds, self.compare.bf16
        )

    def resume_or_begin(self, state_file: Any, start: dict[str, Tensor]) -> None:
        settings = asdict(self.healing)
        state = read_state(state_file, settings, self.start_hash) if state_file else None
        if state is None:
            self.best = start
            self.before = self.after = self.measure()
            if not math.isfinite(self.before.loss):
                raise ValueError(
                    f'heal: the loss on the images kept aside is {self.before.loss} before any '
                    'step: look for NaN in the weights, and for damaged images'
                )
            return
        if state['number'] != self.number:
            raise ValueError(
                f'{state_file} is of a healing with {state["number"]} batches, here are '
                f'{self.number}: give the same images, or delete it to start anew'
            )
        self.put(state['weights'])
        device = next(iter(self.trained.values())).device
        self.best = {name: value.to(device) for name, value in state['best'].items()}
        self.optimizer.load_state_dict(state['optimizer'])
        self.generator.set_state(state['generator'])
        self.before, self.after = (Distance(*state[name]) for name in ('before', 'after'))
        self.steps, self.images, self.best_step = state['position']
        self.looked_step = self.steps
        self.spent, self.look_seconds = state['seconds']

    def train(self, state_file: Any, progress: Callable[[float, str], None]) -> None:
        timed = self.healing.minutes is not None
        look_at = self.share + LOOK
        while self.share < 1:
            first = self.steps
            for batch in _in_random_order(self.batches, self.generator):
                self.step(batch)
                text = f'loss aside {self.before.loss:.4g} -> {self.after.loss:.4g}'
                progress(self.share, text)
                if timed and self.share >= look_at:
                    self.look(state_file)
                    look_at = self.share + LOOK
                if self.share >= 1 and timed:
                    break
            if self.steps == first:
                raise ValueError('heal: batches gave no batch in its second round')
            if not timed:
                # Whatever len() says of what was to come.
                self.look(state_file)
        if timed:
            self.look(state_file)

    def step(self, batch: Any) -> None:
        share = self.share
        warm = min(1.0, share / WARM_UP + 0.05)
        for group in self.optimizer.param_groups:
            group['lr'] = self.healing.lr * warm * (1 + math.cos(math.pi * share)) / 2
        loss, _, _ = self.compare(self.augmented(batch))
        if not torch.is_tensor(loss) or not loss.requires_grad:
            raise ValueError(
                'heal: the loss leads to no parameter of the student that needs a gradient; set '
                'with_cp=False, or let more parameters be trained'
            )
        if not loss.isfinite():
            self.stop(loss.item())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.steps += 1
        self.images += count_images(batch)

    def stop(self, loss: float) -> None:
        raise ValueError(
            f'heal: the loss is {loss} after {self.steps} steps with lr={self.healing.lr}: take a '
            'lower lr; the network is as it was before healing'
        )

    def look(self, state_file: Any) -> None:
        """Measure on the images kept aside, keep the best weights, and write the state."""
        if self.steps == self.looked_step:
            return
        self.looked_step = self.steps
        distance = self.measure()
        if not math.isfinite(distance.loss):
            self.stop(distance.loss)
        if distance.loss < self.after.loss:
            self.after, self.best, self.best_step = distance, self.weights(), self.steps
        if state_file:
            state = dict(
                settings=asdict(self.healing),
                start=self.start_hash,
                number=self.number,
                weights=self.weights(),
                best=self.best,
                optimizer=self.optimizer.state_dict(),
                generator=self.generator.get_state(),
                before=tuple(self.before),
                after=tuple(self.after),
                position=(self.steps, self.images, self.best_step),
                seconds=(self.seconds, self.look_seconds),
            )
            save_state(state_file, state)

    def measure(self) -> Distance:
        begun = time.monotonic()
        distance = self.compare.measure(self.aside)
        self.look_seconds = time.monotonic() - begun
        return distance

    def augmented(self, batch: Any) -> Any:
        crop, flip = self.healing.crop, self.healing.flip
        if not crop and not flip:
            return batch
        if not isinstance(batch, Mapping):
            return augment(batch, self.generator, crop, flip)
        sizes = batch.get('image_sizes')
        return {**batch, 'inputs': augment(batch.get('inputs'), self.generator, crop, flip, sizes)}

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.trained.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self.trained.items():
            value.copy_(weights[name])


def _in_random_order(batches: Iterable[Any], generator: torch.Generator) -> Iterator[Any]:
    if hasattr(batches, 'shuffled'):
        return iter(batches.shuffled(generator))
    if isinstance(batches, Sequence):
        order = torch.randperm(len(batches), generator=generator).tolist()
        return (batches[number] for number in order)
    return iter(batches)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode, with gradients on, while the context is open."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.train(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module in training:
            module.training = True
