"""Images that a search scores policies on."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mcf_mm.pruning.structure import check_whole

#: Images to calibrate on and to score on where nobody says how many (ours).
NUM_IMAGES, SEARCH_IMAGES = 1024, 500
#: Share of the memory that is free which the images to score on may take (ours).
MEMORY = 0.5


def shared_images(
    number: int, num_images: int | None, search_images: int | None
) -> tuple[int, int]:
    """How many images are calibrated on, and how many scored on.

    Args:
        number: Images of the training set.
        num_images: Asked for, to calibrate on. Defaults to 1024, or what the others leave.
        search_images: Asked for, to score on. Defaults to 500, at most half of the set where
            neither is asked for.

    Raises:
        ValueError: There are not as many.
    """
    for name, value in (('num_images', num_images), ('search_images', search_images)):
        if value is not None:
            check_whole(name, value, 1)
    if search_images is None:
        half = number // 2 if num_images is None else number - num_images
        search_images = min(SEARCH_IMAGES, half)
    if num_images is None:
        num_images = min(NUM_IMAGES, number - search_images)
    if num_images < 1 or search_images < 1 or num_images + search_images > number:
        raise ValueError(
            f'the training set has {number} images: {max(num_images, 1)} to calibrate on '
            f'(num_images) and {max(search_images, 1)} others to score on (search_images) are more'
        )
    return num_images, search_images


def loaded(loader: DataLoader) -> Iterable[Any]:
    """The batches of a loader in memory, as they were loaded, or the loader if they are too many.

    Prints what is done.
    """
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    batches, size = [], 0
    for batch in loader:
        batches.append(batch)
        size += sum(image.numel() * image.element_size() for image in batch['inputs'])
        if len(batches) == 1 and size * len(loader) > MEMORY * free:
            print(
                f'images to score on are read anew for each trial: they would take '
                f'{size * len(loader) / 2**20:,.0f} MiB, {free / 2**20:,.0f} are free'
            )
            return loader
    print(f'{len(loader.dataset)} images to score on are in memory, {size / 2**20:,.1f} MiB')
    return batches


def labels_of(dataset: Subset) -> Tensor | None:
    """The class of each image of a subset, ``(images,)``; None where one has none."""
    labels = [dataset.dataset.get_data_info(number).get('gt_label') for number in dataset.indices]
    if any(label is None or isinstance(label, list | tuple) for label in labels):
        return None
    return torch.tensor([int(label) for label in labels])
