"""Detectors with a pruned backbone, and detectors pruned directly, on real COCO photos.

The configs are as they are but for their widths and for the number and size of the photos.
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_ffns, prune
from mcf_mm.weights.checkpoint import save_state_dict

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SWIN = dict(arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]), window_size=4)
VIT = dict(arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40))
NORM = dict(type='GN', num_groups=4)
PYRAMID = dict(in_channels=[16, 32], out_channels=16)
#: The backbone of the classifier, of the detector, and what else makes each config small.
SMALL = {
    'detectors/mask-rcnn_mcf-swin-t_fpn_1x_coco.py': (
        dict(SWIN, type='mcf_mm.SlimSwinTransformer', out_indices=(1,)),
        dict(SWIN, out_indices=(0, 1)),
        dict(neck=PYRAMID),
    ),
    'detectors/retinanet_mcf-swin-t_fpn_1x_coco.py': (
        dict(SWIN, type='mcf_mm.SlimSwinTransformer', out_indices=(1,)),
        dict(SWIN, out_indices=(0, 1)),
        dict(
            neck=PYRAMID,
            # Two stages begin at stride 4.
            bbox_head=dict(stacked_convs=1, anchor_generator=dict(strides=[4, 8, 16, 32, 64])),
        ),
    ),
    'detectors/mask-rcnn_mcf-deit-s_sfp_1x_coco.py': (
        dict(VIT, type='mcf_mm.SlimVisionTransformer'),
        dict(VIT),
        dict(neck=dict(in_channels=16, out_channels=16)),
    ),
    **{
        f'detectors/{name}_mcf-deit-tiny_sfp_1x_coco.py': (
            dict(VIT, type='mcf_mm.SlimVisionTransformer'),
            dict(VIT),
            dict(neck=dict(in_channels=16, out_channels=16), **head),
        )
        for name, head in {
            'retinanet': dict(bbox_head=dict(stacked_convs=1)),
            'atss': dict(bbox_head=dict(stacked_convs=1, norm_cfg=NORM)),
            'fcos': dict(bbox_head=dict(stacked_convs=1, norm_cfg=NORM)),
            'faster-rcnn': {},
        }.items()
    },
    'yolos/yolos_mcf-deit-tiny_8xb2-300e_coco.py': (
        dict(VIT, type='mcf_mm.SlimVisionTransformer'),
        dict(VIT, img_size=(64, 96), num_det_tokens=20),
        dict(bbox_head=dict(embed_dims=16)),
    ),
}


def narrow(config: ConfigDict, widths: tuple[int, ...] = (256, 1024)) -> None:
    """Sets the usual widths of mmdet's necks and heads to 16."""
    for key, value in config.items():
        if isinstance(value, dict):
            narrow(value, widths)
        elif value in widths:
            config[key] = 16


def small_config(name: str, coco_mini: Path, work_dir: Path) -> Config:
    """A config on six photos of up to 96 px, three epochs; the backbone has no checkpoint."""
    cfg = load_config(str(CONFIGS / name), str(work_dir))
    _, backbone, others = SMALL[name]
    narrow(cfg.model)
    cfg.model.backbone.update(backbone)
    for key in ('sizes', 'init_cfg'):
        cfg.model.backbone.pop(key)
    cfg.merge_from_dict(dict(model=others))
    resize = dict(type='Resize', keep_ratio=True)
    if cfg.model.type == 'mcf_mm.YOLOS':
        resize = dict(type='mcf_mm.PatchResize')
    else:
        cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).update(score_thr=0.0, max_per_img=20)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=3, num_workers=0, persistent_workers=False)
        pipeline = [
            dict(resize, scale=(96, 96)) if step.type.endswith(('Resize', 'Choice')) else step
            for step in loader.dataset.pipeline
        ]
        loader.dataset.update(
            data_root=str(coco_mini),
            ann_file='annotations/instances_val2017.json',
            data_prefix=dict(img='val2017/'),
            indices=6,
            pipeline=pipeline,
        )
    cfg.val_evaluator.ann_file = str(coco_mini / 'annotations/instances_val2017.json')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.train_cfg.update(max_epochs=3, val_interval=10)
    cfg.default_hooks.checkpoint.interval = 3
    cfg.param_scheduler = []
    cfg.randomness = dict(seed=0)
    cfg.experiment_name = work_dir.parent.name
    return cfg


def photos(cfg: Config, loader: str) -> dict:
    """The first batch of a data loader."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg[loader].dataset)
    return pseudo_collate([dataset[index] for index in range(3)])


def classifier(backbone: dict) -> nn.Module:
    """What the checkpoints of configs/mcf are of, small."""
    head = dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16)
    if 'Swin' in backbone['type']:
        head = dict(type='LinearClsHead', num_classes=3, in_channels=32)
    model = dict(type='ImageClassifier', backbone=dict(backbone, img_size=64), head=head)
    if 'Swin' in backbone['type']:
        model['neck'] = dict(type='GlobalAveragePooling')
    model = build_model(Config(dict(default_scope='mmpretrain', model=model)))
    model.init_weights()
    return model


@pytest.mark.parametrize('pruned', [False, True], ids=['dense', 'pruned'])
@pytest.mark.parametrize('name', SMALL)
def test_takes_the_backbone_of_a_classifier(name, pruned, coco_mini, tmp_path):
    source = classifier(SMALL[name][0])
    if pruned:
        prune(source, [torch.randn(4, 3, 64, 64)], ratios=0.4)
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, source.state_dict(), {})
    cfg = small_config(name, coco_mini, tmp_path / 'work')
    original = Config.fromfile(CONFIGS / name).model.backbone
    init_cfg = dict(original.init_cfg, checkpoint=str(path))
    cfg.model.backbone.update(sizes=original.sizes, init_cfg=init_cfg)
    model = build_model(cfg)
    model.init_weights()
    assert all((ffn.sizes['inputs'] < ffn.width) == pruned for ffn in find_ffns(model))
    weights = source.backbone.state_dict()
    new = {'norm0.weight', 'norm0.bias', 'det_token'}
    assert model.backbone.state_dict().keys() - weights.keys() <= new
    for key, weight in weights.items():
        # Resized to the photos, or beside them.
        if key != 'pos_embed':
            assert torch.equal(model.backbone.state_dict()[key], weight), key

    data = model.data_preprocessor(photos(cfg, 'train_dataloader'), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    for key, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    model.train(False)
    with torch.no_grad():
        samples = model.test_step(photos(cfg, 'val_dataloader'))
    for sample in samples:
        boxes = sample.pred_instances.bboxes
        height, width = sample.ori_shape
        assert len(boxes) == 20
        # Up to the rounding of the resize.
        assert boxes.min() >= 0 and (boxes <= boxes.new_tensor([width, height] * 2) + 1).all()
        assert ('masks' in sample.pred_instances) == ('mask' in name)


@pytest.mark.parametrize('name', [name for name in SMALL if 'sfp' not in name])
def test_pruned_directly_on_coco(name, coco_mini, tmp_path):
    cfg = small_config(name, coco_mini, tmp_path / 'work')
    cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4, num_images=4)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    ffns = find_ffns(runner.model)
    assert len(ffns) == 2
    for ffn in ffns:
        hidden = int(0.6 * ffn.width * (2.5, 4)['swin' in name])
        assert ffn.sizes == dict(inputs=int(0.6 * ffn.width), hidden=hidden)

    # As tools/test.py does.
    slim = load_config(str(tmp_path / 'work' / 'slim.py'), str(tmp_path / 'again'))
    slim.load_from = str(tmp_path / 'work' / 'slim.safetensors')
    slim.experiment_name += 'again'
    again = Runner.from_cfg(slim)
    metrics = again.test()
    assert metrics == runner.val()
    assert metrics['coco/bbox_mAP'] >= 0
    batch = photos(cfg, 'val_dataloader')
    for first, second in zip(
        runner.model.val_step(batch), again.model.val_step(batch), strict=True
    ):
        assert len(first.pred_instances) == 20
        for key, value in first.pred_instances.items():
            assert torch.equal(value, second.pred_instances[key]), key
