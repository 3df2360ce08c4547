"""Finds segmentations of COCO's format that pycocotools would misread, or crash on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def mask_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with the segmentation of an annotation; None if nothing is.

    Args:
        segmentation: Polygons ``[[x1, y1, x2, y2, ...], ...]``, or a run-length encoding
            ``{'size': [height, width], 'counts': ...}``, with counts as numbers or compressed.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f'has segmentation {segmentation!r}: expected polygons or a run-length encoding'
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return (
                f'has segmentation {_short(segmentation)}: expected a list of polygons, '
                '[[x1, y1, x2, y2, x3, y3, ...]]'
            )
        if len(polygon) < 6 or len(polygon) % 2:
            return (
                f'has a polygon of {len(polygon)} coordinates, {_short(polygon)}: expected x and y '
                'of at least three points. Repair it, or leave it out of segmentation'
            )
        try:
            is_finite = math.isfinite(sum(polygon))
        except TypeError:  # text, None or a list
            is_finite = False
        if not is_finite:
            return f'has a polygon {_short(polygon)}: expected finite numbers'
    return None


def _rle_fault(segmentation: dict, height: int, width: int) -> str | None:
    size, counts = segmentation.get('size'), segmentation.get('counts')
    where = f'has a run-length encoding with size {size!r} and counts {_short(counts)}'
    if size != [height, width]:
        return f'{where}: the image has [height, width] {[height, width]}. Encode the mask anew'
    if isinstance(counts, str):
        numbers = decode_counts(counts)
    elif isinstance(counts, list) and all(type(number) is int for number in counts):
        numbers = counts
    else:
        numbers = None
    if numbers is None or min(numbers, default=0) < 0:
        return f'{where}: these are no counts. Encode the mask anew'
    if (total := sum(numbers)) != height * width:
        return (
            f'{where}: they count {total} pixels and the image has {height * width}. '
            'Encode the mask anew'
        )
    return None


def decode_counts(text: str) -> list[int] | None:
    """Runs of a compressed run-length encoding, as pycocotools reads it; None if it is none.

    Each number is written in groups of 5 bits, the lowest first; bit 5 says that more follow and
    bit 4 of the last group is the sign. From the fourth on it is the difference to the last but
    one.
    """
    groups = np.frombuffer(text.encode('utf-8', 'replace'), np.uint8).astype(np.int64) - 48
    is_last = (groups & 32) == 0
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:  # 40 bits, more than any image has pixels
        return None
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & 31) << (5 * places), starts)
    numbers -= np.where(groups[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        numbers[first::2] = numbers[first::2].cumsum()
    return numbers.tolist()


def _short(value: Any) -> str:
    """The value as written, or its beginning."""
    text = repr(value[:9]) if isinstance(value, Sequence) else repr(value)
    return f'{text}, ...' if isinstance(value, Sequence) and len(value) > 9 else text
