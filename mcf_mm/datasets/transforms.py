"""Image transforms."""

from mmdet.datasets.transforms import Resize

from mcf_mm.registry import TRANSFORMS

PATCH = 16


@TRANSFORMS.register_module()
class PatchResize(Resize):
    """Resizes an image to whole patches: the ratio is kept, then both sides floored to 16.

    So no pixel is outside a patch; the ratio changes by less than a patch. The public code of
    `YOLOS <https://arxiv.org/abs/2106.00666>`_ resizes to the same sizes in training and
    evaluation. The pixels differ a little: these are OpenCV's, as everywhere in mmdet, there they
    are Pillow's (``backend='pillow'`` gives those).

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
        results['scale'] = self._whole_patches(results['img'].shape[:2], results['scale'])
        super()._resize_img(results)

    @staticmethod
    def _whole_patches(shape: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
        """Width and height for an image of ``shape``, height and width."""
        short, long = sorted(shape)
        new_long, new_short = max(scale), min(scale)
        # In whole numbers, for a float just below 160 would lose a patch.
        if long * new_short > new_long * short:
            new_short = round(new_long * short / long)
        else:
            # Not rounded, as mmcv would: 1055.7 is no 66 patches.
            new_long = new_short * long // short
        sides = [max(side - side % PATCH, PATCH) for side in (new_short, new_long)]
        return tuple(sides if shape[1] == short else reversed(sides))
