"""What ``mmcv._ext`` offers, for an mmcv that was installed without compiled operators.

:mod:`mcf_mm.compat.versions` loads this file under the name ``mmcv._ext``. Non-maximum suppression
and RoIAlign run on torchvision's kernels with mmcv's results; every other operator is there, so
that ``mmcv.ops`` can be imported, and raises an error that names it when it is called.

Argument names and in-place outputs are those of mmcv's C++ binding.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from mcf_mm.compat.versions import build_operators_advice

_CURE = (
    'mmcv was installed without compiled operators and mcf_mm stands in for nms and RoIAlign '
    f'(average) only. {build_operators_advice()}'
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: Corners x1, y1, x2, y2, ``(N, 4)``.
        scores: ``(N,)``.
        iou_threshold: A box goes when its IoU with a better one is larger than this.
        offset: Width and height are ``x2 - x1 + offset``; 0 or 1. Defaults to 0.

    Returns:
        Indices of the boxes that stay, best first, int64.
    """
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # mmcv compares in single precision: a threshold of 0.6 does not drop an IoU of exactly 0.6.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(boxes, scores, threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the pooled features of each region into ``output``, ``(R, C, height, width)``.

    Args:
        input: Feature map, ``(N, C, H, W)``.
        rois: Image index and corners x1, y1, x2, y2 in pixels of the image, ``(R, 5)``.
        output: Receives the result.
        argmax_y: Only for maximum pooling.
        argmax_x: Only for maximum pooling.
        aligned_height: Height of the result.
        aligned_width: Width of the result.
        spatial_scale: Feature map pixels per image pixel.
        sampling_ratio: Samples per bin and axis, 0 for as many as fit.
        pool_mode: 1 for the average; 0, the maximum, is not available.
        aligned: Whether pixel centres are at half coordinates.

    Raises:
        NotImplementedError: ``pool_mode`` is 0.
    """
    _refuse_maximum('roi_align_forward', pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the gradient of the feature map into ``grad_input``, ``(N, C, H, W)``.

    The other arguments are those of :func:`roi_align_forward`.

    Raises:
        NotImplementedError: ``pool_mode`` is 0.
    """
    _refuse_maximum('roi_align_backward', pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _refuse_maximum(name: str, pool_mode: int) -> None:
    if pool_mode == 0:
        raise NotImplementedError(f"{name} with pool_mode='max' cannot run: {_CURE}")


def get_compiler_version() -> str:
    """What environment reports print as the compiler of mmcv's operators."""
    return 'n/a (no compiled operators)'


def get_compiling_cuda_version() -> str:
    """What environment reports print as the CUDA version of mmcv's operators."""
    return 'n/a (no compiled operators)'


def __getattr__(name: str) -> Callable:
    # Private names are asked for by the import system and by inspect, not by mmcv.
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args, **kwargs):
        raise NotImplementedError(f'the mmcv operator {name!r} cannot run: {_CURE}')

    return missing
