"""Necks and heads that were made for another backbone."""

from pathlib import Path

import pytest
from fork_server import run_tool
from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.networks import build_model
from mcf_mm.models.widths import check_widths

ROOT = Path(__file__).resolve().parents[2]
SWIN = dict(
    type='mcf_mm.SlimSwinTransformer',
    arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]),
    window_size=4,
    pad_small_map=True,
)
VIT = dict(
    type='mcf_mm.SlimVisionTransformer',
    arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
    out_type='featmap',
)


def retinanet(backbone: dict, neck: dict | None, in_channels: int = 16) -> Config:
    cfg = Config.fromfile(ROOT / 'configs/detectors/retinanet_mcf-swin-t_fpn_1x_coco.py')
    cfg.model.backbone, cfg.model.neck = backbone, neck
    cfg.model.bbox_head.in_channels = in_channels
    return cfg


def fpn(in_channels: list[int]) -> dict:
    return dict(type='FPN', in_channels=in_channels, out_channels=16, num_outs=5)


def mapper(in_channels: list[int]) -> dict:
    return dict(type='ChannelMapper', in_channels=in_channels, kernel_size=1, out_channels=16)


@pytest.mark.parametrize(
    'backbone, neck, head_width, strides',
    [
        (dict(SWIN, out_indices=(0, 1)), fpn([16, 32]), 16, [4, 8, 16, 32, 64]),
        (dict(SWIN, out_indices=(1,)), mapper([32]), 16, [8]),
        (dict(SWIN, out_indices=(1,)), [mapper([32]), fpn([16])], 16, [8, 16, 32, 64, 128]),
        (
            VIT,
            dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=32, out_channels=16),
            16,
            [4, 8, 16, 32, 64],
        ),
        (VIT, None, 32, [16]),
    ],
)
def test_what_fits(backbone, neck, head_width, strides):
    cfg = retinanet(backbone, neck, head_width)
    cfg.model.bbox_head.anchor_generator.strides = strides
    build_model(cfg)


@pytest.mark.parametrize(
    'backbone, neck, message',
    [
        (
            dict(SWIN, out_indices=(0, 1)),
            fpn([96, 192]),
            r'neck \(FPN\) has in_channels=\[96, 192\], but the maps of the backbone '
            r'\(SlimSwinTransformer\) are \[16, 32\] channels wide: '
            r'set neck.in_channels=\[16, 32\]',
        ),
        (dict(SWIN, out_indices=(1,)), fpn([16, 32]), r'in_channels=\[16, 32\].* \[32\] channels'),
        (
            dict(SWIN, out_indices=(0, 1)),
            mapper([32, 64]),
            r'\(ChannelMapper\) has in_channels=\[32, 64\].* are \[16, 32\] channels wide',
        ),
        (
            VIT,
            dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=16),
            r'SimpleFeaturePyramid\) has in_channels=16, .*\(SlimVisionTransformer\) are \[32\] '
            'channels wide: set neck.in_channels=32 in the config',
        ),
        (VIT, None, r'bbox_head \(RetinaHead\) has in_channels=16, .* are \[32\] channels wide'),
    ],
    ids=['fpn', 'too many', 'mapper', 'pyramid', 'head'],
)
def test_what_does_not(backbone, neck, message):
    with pytest.raises(ValueError, match=message):
        build_model(retinanet(backbone, neck))


def test_a_backbone_of_others_is_not_looked_at():
    cfg = retinanet(dict(type='ResNet', depth=18), fpn([1, 2]))
    check_widths(build_model(cfg), cfg.model)


def test_classifier():
    head = dict(type='LinearClsHead', num_classes=2, in_channels=16)
    model = dict(
        type='ImageClassifier',
        backbone=dict(SWIN, out_indices=(1,)),
        neck=dict(type='GlobalAveragePooling'),
        head=head,
    )
    with pytest.raises(ValueError, match=r'head \(LinearClsHead\) has in_channels=16.*are \[32\]'):
        build_model(Config(dict(default_scope='mmpretrain', model=model)))
    model['head']['in_channels'] = 32
    build_model(Config(dict(default_scope='mmpretrain', model=model)))


@pytest.mark.parametrize('width', [16, 32])
def test_a_neck_behind_a_pooling_neck(width):
    neck = [
        dict(type='GlobalAveragePooling'),
        dict(type='LinearNeck', in_channels=width, out_channels=8),
    ]
    model = dict(
        type='ImageClassifier',
        backbone=dict(SWIN, out_indices=(1,)),
        neck=neck,
        head=dict(type='LinearClsHead', num_classes=2, in_channels=8),
    )
    config = Config(dict(default_scope='mmpretrain', model=model))
    if width == 32:
        build_model(config)
        return
    with pytest.raises(ValueError, match=r'neck \(LinearNeck\) has in_channels=16, .* \[32\] chan'):
        build_model(config)


def test_before_training(detection_cfg):
    """The hook refuses it, and so do the tools without the hook."""
    cfg = Config(dict(detection_cfg))
    cfg.model = retinanet(dict(SWIN, out_indices=(0, 1)), fpn([16, 64])).model
    path = Path(cfg.work_dir).parent / 'wide.py'
    cfg.dump(path)
    cfg.train_cfg.max_epochs = 3
    cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook')]
    with pytest.raises(ValueError, match=r'in_channels=\[16, 64\].* are \[16, 32\] channels wide'):
        Runner.from_cfg(cfg).train()
    done = run_tool([ROOT / 'tools/train.py', path])
    assert 'in_channels=[16, 64], but the maps' in done.stderr
    assert 'Epoch(train)' not in done.stdout
