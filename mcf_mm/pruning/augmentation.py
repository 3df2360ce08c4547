"""Random crops and flips of image tensors, drawn from a generator of their own."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Share of the area that a crop has, and its aspect ratio (width / height) by the image's.
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


def augment(
    images: Tensor | None,
    generator: torch.Generator,
    crop: bool = True,
    flip: bool = True,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Crop each image at random, resize it to its old size, and flip half of the images.

    Crops are those of torchvision's ``RandomResizedCrop`` with 50 to 100 % of the area, bilinear
    with antialiasing; their aspect ratio is 3/4 to 4/3 of the image's, which is 1 there.

    Args:
        images: Images, ``(B, 3, H, W)``; they stay as they are.
        generator: Where all draws come from; on the CPU.
        crop: Whether images are cropped. Defaults to True.
        flip: Whether images are flipped, left to right. Defaults to True.
        sizes: Height and width of each image without its padding, which is at the right and the
            bottom and stays there. Defaults to None: there is no padding.

    Returns:
        New images, ``(B, 3, H, W)``.

    Raises:
        ValueError: The tensor is not one of images.
    """
    if not torch.is_tensor(images) or images.dim() != 4 or not images.is_floating_point():
        got = f'{images.dtype} {tuple(images.shape)}' if torch.is_tensor(images) else type(images)
        raise ValueError(
            f'crop and flip are for batches of images, floating-point (B, 3, H, W), got {got}; set '
            'crop=False and flip=False for other inputs'
        )
    result = images.clone()
    for number, image in enumerate(result):
        height, width = image.shape[-2:] if sizes is None else sizes[number][:2]
        part = image[:, :height, :width]
        new = part
        if crop:
            top, left, rows, columns = draw_crop(part.shape[-2], part.shape[-1], generator)
            new = part[:, top : top + rows, left : left + columns]
            new = F.interpolate(
                new[None], part.shape[-2:], mode='bilinear', align_corners=False, antialias=True
            )[0]
        if flip and torch.rand((), generator=generator) < 0.5:
            new = new.flip(-1)
        if new is not part:
            part.copy_(new)
    return result


def draw_crop(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a crop of an image of ``height`` x ``width`` pixels.

    Returns:
        Top, left, height and width of the crop; the whole image where ten draws do not fit.
    """
    low, high = (math.log(ratio * width / height) for ratio in RATIO)
    for _ in range(10):
        draws = torch.rand(4, generator=generator, dtype=torch.double).tolist()
        area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * draws[0])
        ratio = math.exp(low + (high - low) * draws[1])
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = int(draws[2] * (height - rows + 1)), int(draws[3] * (width - columns + 1))
            return top, left, rows, columns
    return 0, 0, height, width
