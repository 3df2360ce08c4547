"""Small networks of every library whose units the core finds, with seeded random weights."""

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from torch import nn

import mcf_mm.registry  # noqa: F401  before mmdet.models
from mcf_mm.registry import MODELS

IMAGE = (2, 3, 32, 32)


def built(scope: str, config: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config)


def part(kind: str, **arguments) -> nn.Module:
    """A backbone or a head of mmpretrain."""
    return built('mmpretrain', dict(type=kind, **arguments))


def mmpretrain(kind: str, width: int = 24, **more) -> nn.Module:
    arch = dict(embed_dims=width, num_layers=2, num_heads=3, feedforward_channels=2 * width)
    backbone = dict(type=kind, arch=arch, img_size=32, patch_size=8, **more)
    head = 'DeiTClsHead' if 'Distilled' in kind else 'VisionTransformerClsHead'
    return built(
        'mmpretrain',
        dict(
            type='ImageClassifier',
            backbone=backbone,
            head=dict(type=head, num_classes=5, in_channels=width),
        ),
    )


def swin(scope: str = 'mmpretrain') -> nn.Module:
    if scope == 'mmdet':
        return built(
            'mmdet',
            dict(
                type='mmdet.SwinTransformer',
                embed_dims=16,
                depths=(2, 2),
                num_heads=(2, 4),
                window_size=4,
                strides=(4, 2),
                out_indices=(1,),
            ),
        )
    return built(
        'mmpretrain',
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='SwinTransformer',
                arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]),
                img_size=24,  # 6 x 6 tokens: windows of 4 are padded
                window_size=4,
                pad_small_map=True,
                out_indices=(1,),
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
        ),
    )


def t2t() -> nn.Module:
    return built(
        'mmpretrain',
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='T2T_ViT',
                img_size=32,
                embed_dims=24,
                t2t_cfg=dict(token_dims=8, use_performer=False),
                num_layers=2,
                layer_cfgs=dict(num_heads=3, feedforward_channels=48),
            ),
            head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=24),
        ),
    )


def timm_vit(name: str = 'vit_tiny_patch16_224', **more) -> nn.Module:
    arguments = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    return timm.create_model(name, **{**arguments, **more})


def timm_swin() -> nn.Module:
    return timm.create_model(
        'swin_tiny_patch4_window7_224',
        img_size=32,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        num_classes=5,
    )


def hugging_face(kind: str, width: int = 24, **more) -> nn.Module:
    # Does not go with the original OpenMMLab set.
    transformers = pytest.importorskip('transformers', minversion='5')
    config = getattr(transformers, f'{kind}Config')(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=2 * width,
        mlp_ratio=2,
        image_size=32,
        patch_size=8,
        num_labels=5,
        **more,
    )
    return getattr(transformers, f'{kind}ForImageClassification')(config)


#: Wider ones of three libraries, of which a budget can prune every kind.
WIDE = {
    'mmpretrain': lambda: mmpretrain('VisionTransformer', 48),
    'timm': lambda: timm_vit(embed_dim=48, mlp_ratio=2),
    'Hugging Face': lambda: hugging_face('ViT', 48),
}
NETWORKS = {
    'mmpretrain VisionTransformer': lambda: mmpretrain('VisionTransformer'),
    'mmpretrain layer scale': lambda: mmpretrain('VisionTransformer', layer_scale_init_value=0.5),
    'mmpretrain DistilledVisionTransformer': lambda: mmpretrain('DistilledVisionTransformer'),
    'mmpretrain T2T_ViT': t2t,
    'mmpretrain SwinTransformer': swin,
    'mmdet SwinTransformer': lambda: swin('mmdet'),
    'timm ViT': timm_vit,
    'timm ViT with q/k norm': lambda: timm_vit(qk_norm=True),
    'timm DeiT distilled': lambda: timm_vit('deit_tiny_distilled_patch16_224'),
    'timm Swin': timm_swin,
    'Hugging Face ViT': lambda: hugging_face('ViT'),
    'Hugging Face DeiT': lambda: hugging_face('DeiT'),
    'Hugging Face DINOv2': lambda: hugging_face('Dinov2'),
}


def network(name: str, seed: int = 0) -> nn.Module:
    """A network whose weights are not at their start, in evaluation mode."""
    torch.manual_seed(seed)
    return moved(NETWORKS[name]())


def moved(model: nn.Module) -> nn.Module:
    """The same with weights that are not at their start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
    return model.eval() or model


def settled(model: nn.Module) -> nn.Module:
    """The same with random weights that no version of timm or torch changes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            if 'norm' in name and name.endswith('weight'):
                value.add_(1)
    return model.eval()


def images(name: str) -> torch.Tensor:
    side = 24 if name == 'mmpretrain SwinTransformer' else 32
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Class scores, or the last feature map of a backbone."""
    y = model(x, mode='tensor') if hasattr(model, 'data_preprocessor') else model(x)
    while isinstance(y, tuple | list):
        y = y[-1]
    return getattr(y, 'logits', y)
