"""Small YOLOS of each library, with random weights in every parameter.

The public one is built of timm's blocks, whose names its release has.
"""

import pytest
import timm
import torch
from torch import Tensor, nn

from mcf_mm.models import YOLOS
from mcf_mm.registry import MODELS

WIDTH, DEPTH, HEADS, DET_TOKENS, CLASSES = 48, 3, 3, 7, 5
# The published size: 54 x 32 patches are as many as 32 x 54, and not the same positions.
PUBLISHED = (512, 864)
SMALL = (64, 96)
TYPES = pytest.mark.parametrize('type_one', [True, False], ids=['type I', 'type II'])


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        # Norms near one, so that attention is sharp and each part of the image is felt.
        centre = float(parameter.ndim == 1 and name.endswith('weight'))
        parameter.data = centre + torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def ours(type_one: bool, img_size=PUBLISHED, **kwargs) -> YOLOS:
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=96)
    backbone = dict(
        type='mcf_mm.YOLOSVisionTransformer',
        arch=arch,
        img_size=img_size,
        num_det_tokens=DET_TOKENS,
        with_mid_pos_embed=type_one,
        **kwargs,
    )
    preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True, **preprocessor),
        backbone=backbone,
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=CLASSES, embed_dims=WIDTH),
    )
    return randomised(MODELS.build(model))


def small(type_one: bool, **kwargs) -> YOLOS:
    return ours(type_one, img_size=SMALL, **kwargs)


def huggingface(type_one: bool, img_size=PUBLISHED) -> nn.Module:
    transformers = pytest.importorskip('transformers')
    config = transformers.YolosConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=96,
        layer_norm_eps=1e-6,
        image_size=img_size,
        num_detection_tokens=DET_TOKENS,
        use_mid_position_embeddings=type_one,
        num_labels=CLASSES,
    )
    return randomised(transformers.YolosForObjectDetection(config))


class Perceptron(nn.Module):
    def __init__(self, out_channels: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(second(first(x).relu()).relu())


class PublicYOLOS(nn.Module):
    """For images of the size that its positions were learnt for."""

    def __init__(self, type_one: bool, img_size: tuple[int, int]):
        super().__init__()
        vit = timm.models.VisionTransformer(
            img_size, 16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2, num_classes=0
        )
        tokens = 1 + vit.patch_embed.num_patches + DET_TOKENS
        vit.pos_embed = nn.Parameter(torch.empty(1, tokens, WIDTH))
        vit.det_token = nn.Parameter(torch.empty(1, DET_TOKENS, WIDTH))
        if type_one:
            vit.mid_pos_embed = nn.Parameter(torch.empty(DEPTH - 1, 1, tokens, WIDTH))
        self.backbone = vit
        self.class_embed = Perceptron(CLASSES + 1)
        self.bbox_embed = Perceptron(4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        vit = self.backbone
        x = torch.cat((vit.cls_token, vit.patch_embed(image), vit.det_token), dim=1)
        x = x + vit.pos_embed
        for i, block in enumerate(vit.blocks):
            x = block(x)
            if hasattr(vit, 'mid_pos_embed') and i < DEPTH - 1:
                x = x + vit.mid_pos_embed[i]
        x = vit.norm(x)[:, -DET_TOKENS:]
        return self.class_embed(x), self.bbox_embed(x).sigmoid()


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
