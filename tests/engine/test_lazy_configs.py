"""New-style configs, where ``type`` is a class: every tool takes them, with all checks on."""

import json
from pathlib import Path

import pytest
from fork_server import run_tool
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model import PretrainedInit

from mcf_mm.engine.config import hook_types, load_config
from mcf_mm.engine.resume import make_resumable
from mcf_mm.engine.runner import build_runner, check_input
from mcf_mm.registry import is_pretrained, split_type

ROOT = Path(__file__).resolve().parents[2]
BASE = """
from mmengine.dataset import DefaultSampler, RepeatDataset
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.models import ImageClassifier, VisionTransformer, VisionTransformerClsHead

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(
        type=VisionTransformer,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40),
        img_size=32,
        patch_size=8,
    ),
    head=dict(type=VisionTransformerClsHead, num_classes=2, in_channels=16),
)
data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[60.0] * 3)
pipeline = [dict(type=LoadImageFromFile), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=5,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=CustomDataset, data_root='PHOTOS', pipeline=pipeline),
)
"""
CHILD = """
from mmengine.config import read_base
from mmengine.hooks import CheckpointHook
from mmpretrain.evaluation import Accuracy
from torch.optim import AdamW

from mcf_mm.engine.hooks import MCFPruningHook

with read_base():
    from .base import *

val_dataloader = dict(
    batch_size=5,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=CustomDataset, data_root='PHOTOS', pipeline=pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=1)
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
custom_hooks = [dict(type=MCFPruningHook, ratio=0.4, num_images=10)]
randomness = dict(seed=0)
"""
DETECTOR = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.dataset import DefaultSampler, RepeatDataset
from torch.optim import AdamW

from mcf_mm.models import YOLOS, YOLOSHead, YOLOSVisionTransformer

default_scope = 'mmdet'
model = dict(
    type=YOLOS,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[60.0] * 3, std=[80.0] * 3),
    backbone=dict(
        type=YOLOSVisionTransformer,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40),
        img_size=64,
        patch_size=16,
        num_det_tokens=8,
    ),
    bbox_head=dict(type=YOLOSHead, num_classes=2, embed_dims=16),
)
pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(96, 96), keep_ratio=True),
    dict(
        type=PackDetInputs,
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(
    type=CocoDataset,
    ann_file='scenes.json',
    data_root='SCENES',
    data_prefix=dict(img=''),
    metainfo=dict(classes=('red', 'green')),
    pipeline=pipeline,
)
train_dataloader = dict(
    batch_size=5,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=RepeatDataset, times=1, dataset=dataset),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(dataset, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=CocoMetric, ann_file='SCENES/scenes.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3))
"""


def tool(name: str, *arguments) -> str:
    """What the tool prints."""
    done = run_tool([ROOT / 'tools' / name, *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def classifier(photos, tmp_path) -> Path:
    """Micro DeiT with the pruning hook; half of the config is in a base."""
    (tmp_path / 'base.py').write_text(BASE.replace('PHOTOS', str(photos)))
    (tmp_path / 'lazy.py').write_text(CHILD.replace('PHOTOS', str(photos)))
    return tmp_path / 'lazy.py'


@pytest.fixture
def detector(scenes, tmp_path) -> Path:
    (tmp_path / 'detector.py').write_text(DETECTOR.replace('SCENES', str(scenes)))
    return tmp_path / 'detector.py'


def test_tools_on_a_classifier(classifier, tmp_path):
    tool('train.py', classifier, '--work-dir', tmp_path / 'run')
    slim = tmp_path / 'run' / 'slim.py'
    weights = slim.with_suffix('.safetensors')
    text = Config.fromfile(slim)  # a text config, without the hook
    assert text.model.backbone.type == 'mcf_mm.SlimVisionTransformer'
    assert 'Pruning' not in slim.read_text() and 'import ' not in slim.read_text()
    assert 'accuracy/top1' in json.loads(tool('test.py', slim, weights).splitlines()[-1])
    tool('train.py', classifier, '--work-dir', tmp_path / 'run', '--resume')
    counts = json.loads(tool('complexity.py', classifier, '--json'))
    assert counts['pruned']['params'] < counts['params']
    again = json.loads(tool('complexity.py', slim, '--json'))
    assert again['params'] == counts['pruned']['params']
    tool('throughput.py', classifier, '--rounds', 1, '--batch', 2, '--json')
    tool('report.py', weights, '--config', classifier, '--out', tmp_path / 'report')


def test_one_shot_pruning_of_a_classifier(classifier, tmp_path):
    # What a user writes who adds to a lazy config by hand; no hook is left.
    classifier.write_text(
        classifier.read_text() + 'custom_hooks = []\ntrain_cfg.update(max_epochs=1)\n'
    )
    tool('train.py', classifier, '--work-dir', tmp_path / 'run')
    dense = tmp_path / 'run' / 'epoch_1.pth'
    tool('prune.py', classifier, dense, '--num-images', 10, '--out', tmp_path / 'slim')
    slim = tmp_path / 'slim' / 'slim.py'
    assert 'accuracy/top1' in tool('test.py', slim, slim.with_suffix('.safetensors'))
    assert 'accuracy/top1' in tool('test.py', classifier, dense)


def test_onnx_of_a_classifier(classifier, tmp_path):
    for package in ('onnxruntime', 'onnx', 'onnxscript'):
        pytest.importorskip(package, reason=f'{package} is not installed: the extra onnx has it')
    tool('train.py', classifier, '--work-dir', tmp_path / 'run')
    slim = tmp_path / 'run' / 'slim.py'
    weights = slim.with_suffix('.safetensors')
    tool('export_onnx.py', slim, weights, tmp_path / 'slim.onnx')
    assert (tmp_path / 'slim.onnx').stat().st_size > 0


def test_tools_on_a_detector(detector, scenes, tmp_path):
    tool('train.py', detector, '--work-dir', tmp_path / 'run')
    dense = tmp_path / 'run' / 'epoch_1.pth'
    assert 'coco/bbox_mAP' in tool('test.py', detector, dense)
    tool('prune.py', detector, dense, '--num-images', 10, '--out', tmp_path / 'slim')
    slim = tmp_path / 'slim' / 'slim.py'
    weights = slim.with_suffix('.safetensors')
    assert 'coco/bbox_mAP' in tool('test.py', slim, weights)
    for config, checkpoint in ((detector, dense), (slim, weights)):
        out = tmp_path / f'pictures of {config.stem}'
        arguments = ['--config', config, '--checkpoint', checkpoint, '--device', 'cpu']
        tool('detect.py', scenes / '1.png', *arguments, '--out', out)
    tool('complexity.py', detector, '--dataset-images', 3)


def test_classes_are_replaced(classifier, detector):
    for path, hook in ((classifier, True), (detector, False)):
        cfg = load_config(str(path))
        assert hook_types(cfg) == (['MCFPruningHook'] if hook else [])
        loader = cfg.train_dataloader
        check_input(loader)
        dataset = loader.dataset.get('dataset') or loader.dataset
        assert dataset.pipeline[0].type == 'mcf_mm.LoadImageFromFile'
        if not hook:
            assert dataset.type == 'mcf_mm.CocoDataset'
            check_input(cfg.val_evaluator)
            assert cfg.val_evaluator.type == 'mcf_mm.CocoMetric'


def test_the_checkpoint_hook_is_replaced(classifier):
    cfg = load_config(str(classifier))
    assert cfg.default_hooks.checkpoint.type is CheckpointHook
    make_resumable(cfg)
    assert cfg.default_hooks.checkpoint.type == 'mcf_mm.AtomicCheckpointHook'


@pytest.mark.parametrize('kind', ['CocoDataset', 'mmdet.CocoDataset', 'mmdet.datasets.CocoDataset'])
def test_text_is_replaced_too(kind):
    part = dict(dataset=dict(type=kind))
    check_input([part])
    assert part['dataset']['type'] == 'mcf_mm.CocoDataset'


class CocoDataset:
    """Of a user's own."""


@pytest.mark.parametrize('kind', [CocoDataset, 'own.CocoDataset', None])
def test_other_classes_of_the_same_name_are_left_alone(kind):
    part = dict(type=kind)
    check_input(part)
    assert part == dict(type=kind)


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained', PretrainedInit])
def test_weights_of_a_part(kind):
    assert is_pretrained(dict(type=kind, checkpoint='a.pth'))
    assert not is_pretrained(dict(type='TruncNormal')) and not is_pretrained(None)
    assert split_type(PretrainedInit) == ('mmengine', 'PretrainedInit')


@pytest.mark.parametrize(
    'fault, message',
    [
        ('category', 'has category_id 99'),
        ('image', r'3\.png: the image file is empty'),
        ('classes', 'bbox_head .* is for 1 classes'),
        ('rate', 'are NaN'),
    ],
)
def test_checks_are_on(detector, scenes, tmp_path, fault, message):
    cfg = load_config(str(detector), str(tmp_path / 'work'))
    cfg.experiment_name = tmp_path.name
    if fault == 'category':
        content = json.loads((scenes / 'scenes.json').read_text())
        content['annotations'][2]['category_id'] = 99
        (scenes / 'scenes.json').write_text(json.dumps(content))
    elif fault == 'image':
        (scenes / '3.png').write_bytes(b'')
    elif fault == 'classes':
        cfg.model.bbox_head.num_classes = 1
    else:
        cfg.optim_wrapper.optimizer.lr = float('inf')
    with pytest.raises((ValueError, FloatingPointError), match=message):
        build_runner(cfg).train()
    assert not list((tmp_path / 'work').glob('*.pth'))
