"""What a healing is asked for (settings) and what came out of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from mcf_mm.pruning.structure import check_seed, check_whole


@dataclass(frozen=True)
class Healing:
    """Settings of :func:`mcf_mm.pruning.heal`. Exactly one of minutes and epochs is given.

    Attributes:
        minutes: How long it takes, from its beginning to its end. The result depends on the speed
            of the machine.
        epochs: How often the images are seen; the result repeats itself.
        logits: Weight of the distance of the class scores. Defaults to None: 1.0, and 0 for a
            network without classifier.
        blocks: Weight of the distance of the blocks' outputs. Defaults to 2.0.
        temperature: Of the class scores. Defaults to 1.0.
        lr: Largest learning rate of AdamW. Defaults to 5e-5; 2e-4 gained nothing on DeiT-Tiny.
        crop: Whether images are cropped at random. Defaults to True.
        flip: Whether images are flipped at random. Defaults to True.
        bf16: Whether the training steps run in mixed precision (bfloat16 autocast). Worth it on
            GPUs, and on CPUs with bfloat16 units such as Intel's AMX; one that would emulate it
            takes float32, with a warning (:func:`mcf_mm.pruning.precision.fast_bf16`). The images
            kept aside are always measured in single precision. Defaults to False.
        folder: Of other images, of which as many as there are calibration images are drawn
            anew in each epoch; no labels are read. For classifiers of OpenMMLab, whose config says
            how images are read. Defaults to None.
        seed: Of the order of the images, crops and flips. Defaults to 0.

    Raises:
        ValueError: An argument is out of range.
    """

    minutes: float | None = None
    epochs: int | None = None
    logits: float | None = None
    blocks: float = 2.0
    temperature: float = 1.0
    lr: float = 5e-5
    crop: bool = True
    flip: bool = True
    bf16: bool = False
    folder: str | None = None
    seed: int = 0

    def __post_init__(self):
        if (self.minutes is None) == (self.epochs is None):
            raise ValueError(
                'heal needs either minutes or epochs, as in minutes=15 or epochs=20, got '
                f'minutes={self.minutes!r} and epochs={self.epochs!r}'
            )
        if self.epochs is not None:
            check_whole('heal: epochs', self.epochs, 1)
        for name in ('minutes', 'lr', 'temperature'):
            value = getattr(self, name)
            if (name != 'minutes' or value is not None) and not (_is_number(value) and value > 0):
                raise ValueError(f'heal: {name} must be a number above 0, got {value!r}')
        for name in ('logits', 'blocks'):
            value = getattr(self, name)
            if (name != 'logits' or value is not None) and not (_is_number(value) and value >= 0):
                raise ValueError(
                    f'heal: {name} is a weight and must be a number from 0 on, got {value!r}'
                )
        if self.logits == 0 and self.blocks == 0:
            raise ValueError('heal: logits and blocks are both 0, one must be positive')
        for name in ('crop', 'flip', 'bf16'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'heal: {name} must be True or False, got {getattr(self, name)!r}')
        if self.folder is not None and not (isinstance(self.folder, str) and self.folder):
            raise ValueError(f'heal: folder must be that of some images, got {self.folder!r}')
        check_seed(self.seed)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> 'Healing':
        """Settings of a mapping, such as ``heal=dict(minutes=15)`` of a config.

        Raises:
            ValueError: It is no mapping, names a setting that is unknown, or one is out of range.
        """
        if not isinstance(settings, Mapping):
            raise ValueError(
                f'heal must be a dict such as dict(minutes=15) or dict(epochs=20), got {settings!r}'
            )
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in settings if name not in names]:
            raise ValueError(f'heal: no setting {unknown[0]!r}; there are {", ".join(names)}')
        return cls(**settings)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


class Distance(NamedTuple):
    """How far the student is from the dense network on some images.

    Attributes:
        loss: What healing makes small.
        logits: Its part of the class scores, without its weight, in nats; 0 where none is compared.
        blocks: Its part of the blocks, without its weight.
    """

    loss: float
    logits: float
    blocks: float


@dataclass(frozen=True)
class Healed:
    """What healing has done.

    Attributes:
        before: Distance to the dense network on the images kept aside, before.
        after: The same of the weights that were kept.
        best_epoch: Of which epoch these are, 0 for those of before; a fraction in between.
        epochs: How many there were.
        images: How many images were seen in training, counted each time.
        seconds: How long it took, without the time that a resumed healing had stopped.
        bf16: Whether the steps were in bfloat16.
    """

    before: Distance
    after: Distance
    best_epoch: float
    epochs: float
    images: int
    seconds: float
    bf16: bool = False

    def __str__(self) -> str:
        before, after = (
            f'{each.loss:.4g} (logits {each.logits:.4g}, blocks {each.blocks:.4g})'
            for each in (self.before, self.after)
        )
        return (
            f'healed on {self.images:,} images in {self.seconds:,.0f} s: loss aside {before} -> '
            f'{after}, best epoch {self.best_epoch:.3g} of {self.epochs:.3g}'
        )

    def facts(self) -> dict[str, Any]:
        """Plain values for a checkpoint's header, which must repeat itself: all but the seconds."""
        return dict(
            before=self.before._asdict(),
            after=self.after._asdict(),
            best_epoch=self.best_epoch,
            epochs_done=self.epochs,
            images=self.images,
            bf16=self.bf16,
        )


def split_aside(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Keep every tenth item aside, at least one and at most 64 (the numbers are ours).

    The choice is as random as the order of the items; calibration images come shuffled. More than
    64 would cost time at each look and change little: the loss is a mean over many tokens.

    Args:
        items: At least two, such as numbers of images.

    Returns:
        Those to heal on, and those kept aside.

    Raises:
        ValueError: There is only one, or none.
    """
    items = list(items)
    if len(items) < 2:
        raise ValueError(
            f'heal needs at least 2 images, one of them to be kept aside, got {len(items)}'
        )
    numbers = (range(9, len(items), 10) or range(len(items) - 1, len(items)))[:64]
    aside = set(numbers)
    return (
        [item for number, item in enumerate(items) if number not in aside],
        [items[number] for number in numbers],
    )
