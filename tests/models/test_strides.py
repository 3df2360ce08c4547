"""Heads and RoI extractors whose strides are not those of the maps."""

import copy
from pathlib import Path

import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.networks import build_model
from mcf_mm.models.strides import check_strides
from mcf_mm.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
SWIN = dict(arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]), window_size=4)
VIT = dict(arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40))
DEIT_S = 'detectors/mask-rcnn_deit-s_sfp_1x_coco.py'
SWIN_T = 'detectors/retinanet_mcf-swin-t_fpn_1x_coco.py'


def small(name: str) -> Config:
    """A config with a small backbone that is random."""
    cfg = Config.fromfile(CONFIGS / name)
    for key in ('sizes', 'init_cfg'):
        cfg.model.backbone.pop(key, None)
    if 'Swin' in cfg.model.backbone.type:
        indices = cfg.model.backbone.out_indices[:2]
        cfg.model.backbone.update(SWIN, out_indices=[index % 2 for index in indices])
        cfg.model.neck.in_channels = [16, 32]
    elif 'YOLOS' not in cfg.model.backbone.type:
        cfg.model.backbone.update(VIT)
        cfg.model.neck.in_channels = 16
    return cfg


def test_yolos_and_classifiers_have_none():
    build_model(Config.fromfile(CONFIGS / 'experiments/yolos_deit-tiny_2cpu-24e_facemask.py'))
    build_model(Config.fromfile(CONFIGS / 'mcf/mcf_deit-tiny_8xb128_in1k.py'))


def test_a_pyramid_from_4_under_anchors_from_8():
    """What trained in silence: five levels each, all a factor of two apart."""
    cfg = Config.fromfile(CONFIGS / SWIN_T)
    neck = dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=16)
    backbone = dict(VIT, type='mcf_mm.SlimVisionTransformer', out_type='featmap')
    cfg.model.backbone, cfg.model.neck = backbone, neck
    with pytest.raises(ValueError) as error:
        build_model(cfg)
    assert str(error.value) == (
        'bbox_head (RetinaHead) has strides [8, 16, 32, 64, 128], but the neck '
        '(SimpleFeaturePyramid) gives 5 maps of strides [4, 8, 16, 32, 64]: set '
        'bbox_head.anchor_generator.strides=[4, 8, 16, 32, 64] in the config, or change the levels '
        'of the neck'
    )
    cfg.model.neck.start_level = 1
    build_model(cfg)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'rpn_head.anchor_generator.strides': [8, 16, 32, 64, 128]},
            r'rpn_head \(RPNHead\) has strides \[8, 16, 32, 64, 128\].* set '
            r'rpn_head.anchor_generator.strides=\[4, 8, 16, 32, 64\]',
        ),
        ({'rpn_head.anchor_generator.strides': [4, 8, 16, 32]}, r'\[4, 8, 16, 32\].* 5 maps'),
        ({'neck.num_outs': 4}, r'rpn_head .*\[4, 8, 16, 32, 64\], but the neck .* 4 maps'),
        (
            {'roi_head.bbox_roi_extractor.featmap_strides': [8, 16, 32]},
            r'roi_head.bbox_roi_extractor \(SingleRoIExtractor\) has strides \[8, 16, 32\].* set '
            r'roi_head.bbox_roi_extractor.featmap_strides=\[4, 8, 16\]',
        ),
        (
            {'roi_head.mask_roi_extractor.featmap_strides': [4, 8, 16, 32, 64, 128]},
            r'mask_roi_extractor .*\[4, 8, 16, 32, 64, 128\].*=\[4, 8, 16, 32, 64\] in the config',
        ),
        ({'backbone.patch_size': 8}, r'rpn_head .*maps of strides \[2, 4, 8, 16, 32\]'),
    ],
    ids=['anchors', 'too few', 'too many', 'extractor', 'mask extractor', 'patch'],
)
def test_two_stages(changes, message):
    cfg = small(DEIT_S)
    build_model(cfg)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_an_extractor_may_read_the_first_maps_alone():
    cfg = small(DEIT_S)
    cfg.model.roi_head.mask_roi_extractor.featmap_strides = [4, 8]
    build_model(cfg)


def test_stages_of_a_cascade():
    """Each has an extractor of its own; the one that is wrong is named."""
    cfg = Config.fromfile(CONFIGS / 'detectors/faster-rcnn_deit-tiny_sfp_1x_coco.py')
    neck = dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=16)
    backbone = dict(VIT, type='mcf_mm.SlimVisionTransformer', out_type='featmap')
    head = cfg.model.roi_head
    head.update(type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5])
    extractors = [head.bbox_roi_extractor, copy.deepcopy(head.bbox_roi_extractor)]
    head.bbox_roi_extractor, head.bbox_head = extractors, [head.bbox_head] * 2
    cfg.model.train_cfg.rcnn = [cfg.model.train_cfg.rcnn] * 2
    cfg.model.backbone, cfg.model.neck = backbone, neck
    build_model(cfg)
    head.bbox_roi_extractor[0].featmap_strides = [8, 16, 32, 64]
    with pytest.raises(ValueError, match=r'bbox_roi_extractor\[0\] \(SingleRoIExtractor\) has str'):
        build_model(cfg)


def test_fpn_over_swin():
    """The strides of an FPN follow from out_indices, start_level and the extra levels."""
    cfg = small('detectors/mask-rcnn_mcf-swin-t_fpn_1x_coco.py')
    build_model(cfg)
    cfg.model.neck.update(start_level=1, add_extra_convs='on_input')
    with pytest.raises(ValueError, match=r'the neck \(FPN\) gives 5 maps of strides \[8, 16, 32, '):
        build_model(cfg)


def test_points_of_fcos():
    cfg = small(DEIT_S)
    head = dict(type='FCOSHead', num_classes=3, in_channels=256, strides=[8, 16, 32, 64, 128])
    cfg.model = dict(type='FCOS', backbone=cfg.model.backbone, neck=cfg.model.neck, bbox_head=head)
    with pytest.raises(ValueError, match=r'set bbox_head.strides=\[4, 8, 16, 32, 64\]'):
        build_model(cfg)
    cfg.model.neck.start_level = 1
    build_model(cfg)


def test_slim_model_around_a_detector_of_mmdet():
    cfg = Config.fromfile(CONFIGS / SWIN_T)
    cfg.model.backbone = dict(
        type='SwinTransformer',
        embed_dims=48,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        out_indices=(0, 1, 2),
    )
    cfg.model.neck.in_channels = [48, 96, 192]
    build_model(cfg)  # not a part of this package
    cfg.model.update(base=f'mmdet.{cfg.model.type}', type='mcf_mm.SlimModel', sizes=dict(hidden=40))
    with pytest.raises(ValueError, match=r'RetinaHead.* \(FPN\) gives .* \[4, 8, 16, 32, 64\]'):
        build_model(cfg)
    cfg.model.backbone.out_indices = (1, 2, 3)
    cfg.model.neck.in_channels = [96, 192, 384]
    build_model(cfg)


def test_nothing_is_left_behind():
    """Modes, weights, buffers and random numbers stay as they were."""
    cfg = small(DEIT_S)
    model = MODELS.build(dict(cfg.model, _scope_='mmdet'))
    model.train(True)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    check_strides(model, cfg.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {p.device.type for p in model.parameters()} == {'cpu'}


def test_before_training(detection_cfg):
    """The tools refuse it, and so does the hook in a Runner of MMEngine."""
    cfg = Config(dict(detection_cfg))
    cfg.model = small(SWIN_T).model
    cfg.model.bbox_head.num_classes = 2
    path = Path(cfg.work_dir).parent / 'strides.py'
    cfg.dump(path)
    cfg.train_cfg.max_epochs = 3
    cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook')]
    with pytest.raises(ValueError, match='RetinaHead.* has strides .* maps of strides'):
        Runner.from_cfg(cfg).train()
    done = run_tool([ROOT / 'tools/train.py', path])
    assert 'bbox_head (RetinaHead) has strides [8, 16, 32, 64, 128], but the neck' in done.stderr
    assert 'Epoch(train)' not in done.stdout
