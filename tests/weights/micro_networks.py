"""Networks of the smallest sizes, of each library, for tests of their weights."""

import timm
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import build_classifier
from torch import nn

from mcf_mm.pruning import Structure, cut, find_ffns

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40)
TIMM = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.5)


def build(model: dict, scope: str = 'mmpretrain') -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return build_classifier(model)


def vit(num_classes: int = 2, arch: dict = ARCH, **kwargs) -> nn.Module:
    backbone = dict(dict(type='VisionTransformer', img_size=32, patch_size=8), **kwargs)
    head = dict(type='VisionTransformerClsHead', num_classes=num_classes)
    head['in_channels'] = arch['embed_dims']
    return build(dict(type='ImageClassifier', backbone=dict(backbone, arch=arch), head=head))


def slim_vit() -> nn.Module:
    """A dense layer, and one with 8 of 16 inputs and 20 of 40 hidden units."""
    model = vit()
    kept = dict(inputs=torch.arange(0, 16, 2), hidden=torch.arange(0, 40, 2))
    cut(model, Structure({find_ffns(model)[1].name: kept}))
    return model


def swin(depths=(1, 2), **kwargs) -> nn.Module:
    arch = dict(embed_dims=16, depths=depths, num_heads=[2, 4])
    arch.update(kwargs.pop('arch', {}))
    backbone = dict(type='SwinTransformer', img_size=64, window_size=4, out_indices=(1,))
    return build(
        dict(
            type='ImageClassifier',
            backbone=dict(backbone, arch=arch, **kwargs),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=32),
        )
    )


def yolos() -> nn.Module:
    backbone = dict(type='mcf_mm.YOLOSVisionTransformer', arch=ARCH, img_size=(48, 64))
    return build(
        dict(
            type='mcf_mm.YOLOS',
            backbone=dict(backbone, patch_size=8, num_det_tokens=5),
            bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=16),
        ),
        'mmdet',
    )


def timm_vit(**kwargs) -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(**{**TIMM, 'num_classes': 2, **kwargs})
