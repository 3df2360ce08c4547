"""Image transforms."""

import mmcv
from mmdet.datasets.transforms import Resize

from mcf_mm.registry import TRANSFORMS

PATCH = 16


@TRANSFORMS.register_module()
class PatchResize(Resize):
    """Resizes an image to whole patches: the ratio is kept, then both sides floored to 16.

    So no pixel is outside a patch; the ratio changes by less than a patch. The public code of
    `YOLOS <https://arxiv.org/abs/2106.00666>`_ resizes like this in training and evaluation.

    Args:
        scale: Longest and shortest side in pixels that the image must fit into.
        **kwargs: As for :class:`mmdet.datasets.transforms.Resize`, without ``keep_ratio``.

    Example:
        >>> test_pipeline = [
        ...     dict(type='LoadImageFromFile'),
        ...     dict(type='mcf_mm.PatchResize', scale=(1333, 800)),
        ...     dict(type='LoadAnnotations', with_bbox=True),
        ...     dict(type='PackDetInputs')]
    """

    def __init__(self, scale: int | tuple[int, int], **kwargs):
        super().__init__(scale=scale, keep_ratio=False, **kwargs)

    def _resize_img(self, results: dict) -> None:
        height, width = results['img'].shape[:2]
        size = mmcv.rescale_size((width, height), results['scale'])
        results['scale'] = tuple(max(side - side % PATCH, PATCH) for side in size)
        super()._resize_img(results)
