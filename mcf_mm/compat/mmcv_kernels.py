"""Operators of mmcv on torchvision's kernels, with mmcv's results.

Argument names and in-place outputs are those of mmcv's C++ binding. Imported when mmcv asks for
its operators, see :mod:`mcf_mm.compat.mmcv_ops`.
"""

import torch
import torchvision
from torch import Tensor

from mcf_mm.compat.versions import build_operators_advice


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Run greedy non-maximum suppression.

    Args:
        boxes: Corners x1, y1, x2, y2, ``(N, 4)``.
        scores: ``(N,)``.
        iou_threshold: A box goes when its IoU with a better one is larger than this.
        offset: Width and height are ``x2 - x1 + offset``; 0 or 1. Defaults to 0.

    Returns:
        Indices of the boxes that stay, best first, int64.
    """
    # Under autocast they may be bfloat16, which torchvision 0.16 refuses on CPUs, and whose 8 bits
    # tell neither corners beyond 256 pixels nor close overlaps apart.
    boxes, scores = (part.float() if part.element_size() < 4 else part for part in (boxes, scores))
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
    """Write the pooled features of each region into ``output``, ``(R, C, height, width)``.

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
    _check_pool_mode('roi_align_forward', pool_mode)
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
    """Write the gradient of the feature map into ``grad_input``, ``(N, C, H, W)``.

    The other arguments are those of :func:`roi_align_forward`.

    Raises:
        NotImplementedError: ``pool_mode`` is 0.
    """
    _check_pool_mode('roi_align_backward', pool_mode)
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


def _check_pool_mode(name: str, pool_mode: int) -> None:
    if pool_mode == 0:
        raise NotImplementedError(
            f"{name} with pool_mode='max' cannot run: {build_operators_advice()}"
        )


def get_compiler_version() -> str:
    """Return what environment reports print as the compiler of mmcv's operators."""
    return 'n/a (no compiled operators)'


def get_compiling_cuda_version() -> str:
    """Return what environment reports print as the CUDA version of mmcv's operators."""
    return 'n/a (no compiled operators)'


#: The operators by their names in ``mmcv._ext``.
KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        nms,
        roi_align_forward,
        roi_align_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}
