"""What size of image suits the objects of a set, in patches and tokens."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mcf_mm.datasets.own_data import Boxes

#: Pixels of a patch of DeiT, and what sizes are multiples of.
PATCH, STEP = 16, 32
#: Not smaller, however large the objects are: ours.
SMALLEST = 320


class SizeRow(NamedTuple):
    """What a size of image means for a set."""

    #: Longer side of the image in pixels.
    size: int
    #: Patches of the median image.
    tokens: int
    #: sqrt(area) that a tenth of the boxes are below, in pixels at that size.
    small: float
    #: Share of the boxes whose sqrt(area) is less than a patch.
    below: float


def size_row(boxes: Boxes, size: int) -> SizeRow:
    """What images with a longer side of ``size`` pixels mean for the boxes."""
    scales = size / boxes.images.max(1)
    sides = np.sqrt(boxes.sides.prod(1)) * scales[boxes.rows]
    tokens = np.ceil(boxes.images * scales[:, None] / PATCH - 1e-9).prod(1)
    return SizeRow(
        size, int(np.median(tokens)), float(np.quantile(sides, 0.1)), float(np.mean(sides < PATCH))
    )


def choose_size(boxes: Boxes, max_size: int, size: int | None = None) -> tuple[int, str]:
    """The smallest size at which nine of ten boxes are as large as a patch, and why.

    Not above ``max_size`` nor above the median longer side of the images, in whole steps of 32
    pixels, which would add no detail; not below 320, or the limits where they are lower.

    Args:
        boxes: Of the training set.
        max_size: In pixels of the longer side.
        size: What was asked for instead. Defaults to None.

    Raises:
        ValueError: ``max_size`` or ``size`` is less than 64.
    """
    for name, value in (('max-size', max_size), ('size', size)):
        if value is not None and value < 2 * STEP:
            raise ValueError(f'--{name} must be at least {2 * STEP} pixels, got {value}')
    if size is not None:
        return size, 'as --size says'
    original = math.ceil(float(np.median(boxes.images.max(1))) / STEP) * STEP
    limit = min(max_size // STEP * STEP, original)
    lowest = min(SMALLEST, limit)
    for size in range(lowest, limit + 1, STEP):
        if size_row(boxes, size).small >= PATCH:
            if size == lowest:
                return size, 'the smallest that is tried: nine of ten boxes are at least a patch'
            return size, 'the smallest at which nine of ten boxes are at least a patch'
    reason = 'what the images have' if original <= max_size else 'set by --max-size'
    return limit, f'the largest, {reason}: small boxes stay below a patch'


def size_table(boxes: Boxes, chosen: int) -> str:
    """A table of the chosen size and its neighbours, and what follows from it."""
    sizes: Iterable[int] = sorted(
        {max(2 * STEP, round(chosen * f / STEP) * STEP) for f in (0.5, 0.75, 1, 1.5, 2)}
    )
    lines = ['  longer side   patches   10 % of boxes below   smaller than a patch']
    for row in (size_row(boxes, size) for size in sizes):
        mark = '>' if row.size == chosen else ' '
        lines.append(
            f'{mark} {row.size:>8} px   {row.tokens:>7}   {row.small:>16.0f} px   '
            f'{row.below:>20.0%}'
        )
    row = size_row(boxes, chosen)
    lines.append(f'{row.below:.0%} of your boxes are smaller than a patch (16 px) at {chosen} px.')
    if row.below > 0.1:
        median = float(np.median(boxes.images.max(1)))
        larger = f'take a larger --size, up to {median:.0f} px, the median of the images (patches, '
        larger += 'and time, grow with its square), or '
        if chosen >= median:
            larger = f'a larger --size would only enlarge images of {median:.0f} px: '
        lines.append(
            f'A ViT with patches of 16 px hardly sees these: {larger}cut the images into tiles.'
        )
    return '\n'.join(lines)
