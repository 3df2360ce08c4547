"""A feature pyramid from the one map of a plain vision transformer."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn

from mcf_mm.registry import MODELS

#: Levels that are made from the map itself: strides 4, 8, 16 and 32 for patches of 16 pixels.
NUM_LEVELS = 4


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps at 4, 2, 1 and 1/2 times the resolution of the last map of a vision transformer.

    Two deconvolutions, one, none, and a max pooling give the four resolutions; a 1x1 and a 3x3
    convolution, each with layer norm, bring them to one width. See section 3 of `Exploring Plain
    Vision Transformer Backbones for Object Detection <https://arxiv.org/abs/2203.16527>`_; layers
    and norms are those of its appendix.

    Args:
        in_channels: Width C of the map.
        out_channels: Width D of every level. Defaults to 256.
        num_outs: Number of levels. Those beyond the four are the last one at half the resolution
            each, as in :class:`mmdet.models.FPN`. Defaults to 5.
        start_level: The first level that is made, 0 to 3. 0 begins at stride 4, as mmdet's
            Faster R-CNN wants it, 1 at stride 8, as RetinaNet, ATSS and FCOS do. Defaults to 0.
        init_cfg: As in MMEngine. Defaults to FPN's, for deconvolutions too.

    Raises:
        ValueError: ``in_channels`` is no multiple of 4, ``start_level`` is not from 0 to 3 or
            ``num_outs`` leaves levels out; in the forward pass, the map has another width or
            there is not one.

    Example:
        >>> neck = dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=384)  # for DeiT-S
        >>> neck = dict(  # strides 8 to 128
        ...     type='mcf_mm.SimpleFeaturePyramid', in_channels=384, start_level=1)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        init_cfg: dict | None = dict(  # noqa: B006  MMEngine's way; it is copied
            type='Xavier', layer=['Conv2d', 'ConvTranspose2d'], distribution='uniform'
        ),
    ):
        super().__init__(init_cfg=init_cfg)
        if in_channels % 4 or in_channels < 4:
            raise ValueError(
                f'in_channels must be a multiple of 4, which two deconvolutions halve twice; got '
                f'{in_channels}'
            )
        if start_level not in range(NUM_LEVELS):
            raise ValueError(f'start_level must be from 0 to {NUM_LEVELS - 1}, got {start_level!r}')
        if num_outs < NUM_LEVELS - start_level:
            raise ValueError(
                f'num_outs must be at least {NUM_LEVELS - start_level} with '
                f'start_level={start_level}, got {num_outs}'
            )
        self.in_channels = in_channels
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        resizes = [
            nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, 2),
                LayerNorm2d(half, eps=1e-6),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ),
            nn.ConvTranspose2d(in_channels, half, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2),
        ]
        widths = (quarter, half, in_channels, in_channels)
        self.resizes = nn.ModuleList(resizes[start_level:])
        settings = dict(norm_cfg=dict(type='mmpretrain.LN2d', eps=1e-6), act_cfg=None)
        self.convs = nn.ModuleList(
            nn.Sequential(
                ConvModule(width, out_channels, 1, **settings),
                ConvModule(out_channels, out_channels, 3, padding=1, **settings),
            )
            for width in widths[start_level:]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            inputs: The last map of the backbone, ``(B, C, H, W)``, alone in a sequence.

        Returns:
            ``num_outs`` maps from ``start_level`` on of ``(B, D, 4H, 4W)``, ``(B, D, 2H, 2W)``,
            ``(B, D, H, W)``, ``(B, D, H // 2, W // 2)`` and so on. They have the type of the
            weights, under autocast too: RoI extractors round the corners of regions to the type of
            the maps, in bfloat16 to 2 pixels beyond 256.
        """
        shapes = [tuple(features.shape) for features in inputs]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != self.in_channels:
            raise ValueError(
                f'SimpleFeaturePyramid takes one map (B, {self.in_channels}, H, W), the backbone '
                f"gives {shapes}: set the backbone's out_type='featmap', one of out_indices, and "
                "the neck's in_channels to the width"
            )
        levels = [
            conv(resize(inputs[0])) for resize, conv in zip(self.resizes, self.convs, strict=True)
        ]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        weight = self.convs[0][0].conv.weight
        return tuple(level.to(weight.dtype) for level in levels)
