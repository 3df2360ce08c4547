"""Box detectors on a plain ViT: Runners on ten real photos, as the configs for CPUs are."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from test_detector_configs import CONFIGS, NORM, VIT, classifier, narrow

from mcf_mm.engine.bf16_optim_wrapper import Bf16OptimWrapper
from mcf_mm.engine.config import load_config
from mcf_mm.engine.runner import build_runner
from mcf_mm.models import SimpleFeaturePyramid
from mcf_mm.pruning import find_ffns, prune
from mcf_mm.weights.checkpoint import save_state_dict

DETECTORS = ('retinanet', 'atss', 'fcos', 'faster-rcnn')
CLASSES = ('person', 'car', 'chair')  # as the file orders them


def small_config(name: str, coco_mini: Path, work_dir: Path) -> Config:
    """A config for CPUs on ten photos of COCO and three of its classes; everything is narrow."""
    cfg = load_config(str(CONFIGS / 'experiments' / name), str(work_dir))
    narrow(cfg.model, widths=(128, 512))
    cfg.model.backbone.update(VIT)
    cfg.model.neck.in_channels = 16
    if 'bbox_head' in cfg.model:
        cfg.model.bbox_head.stacked_convs = 1
    if cfg.model.type in ('ATSS', 'FCOS'):
        cfg.model.bbox_head.norm_cfg = NORM
    cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).update(score_thr=0.0, max_per_img=20)
    file = 'annotations/instances_val2017.json'
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 5
        pipeline = loader.dataset.pipeline
        for step in pipeline:
            if step.type == 'Resize':
                step.scale = (96, 96)
        loader.dataset.update(
            data_root=str(coco_mini),
            ann_file=file,
            data_prefix=dict(img='val2017/'),
            metainfo=dict(classes=CLASSES),
            indices=10,
            serialize_data=False,  # which would collect garbage, for most of a second
        )
    cfg.val_evaluator.ann_file = str(coco_mini / file)
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.param_scheduler = []
    cfg.default_hooks.logger.interval = 1
    cfg.experiment_name = work_dir.parent.name
    return cfg


@pytest.mark.parametrize('pruned', [False, True], ids=['dense', 'slim'])
@pytest.mark.parametrize('detector', DETECTORS)
def test_trains_and_evaluates(detector, pruned, coco_mini, tmp_path, no_looks):
    kind = 'mcf-deit-tiny' if pruned else 'deit-tiny'
    name = f'{detector}_{kind}_sfp_2cpu-12e_facemask.py'
    source = classifier(dict(VIT, type='mcf_mm.SlimVisionTransformer'))
    if pruned:
        prune(source, [torch.randn(4, 3, 64, 64)], ratios=0.4)
    path = tmp_path / 'weights.safetensors'
    save_state_dict(path, source.state_dict(), {})
    cfg = small_config(name, coco_mini, tmp_path / 'work')
    assert (cfg.model.backbone.get('sizes') == 'auto') == pruned
    cfg.model.backbone.init_cfg.checkpoint = str(path)

    runner = build_runner(cfg)
    assert isinstance(runner.model.neck, SimpleFeaturePyramid)
    before = {key: value.clone() for key, value in source.backbone.state_dict().items()}
    runner.train()
    assert isinstance(runner.optim_wrapper, Bf16OptimWrapper)
    assert runner.iter == 2
    assert all((ffn.sizes['inputs'] < ffn.width) == pruned for ffn in find_ffns(runner.model))
    losses = {
        key: history.data[0]
        for key, history in runner.message_hub.log_scalars.items()
        if 'loss' in key
    }
    assert 'train/loss' in losses and len(losses) > 2
    assert all(len(values) == 2 and (abs(values) < 1e3).all() for values in losses.values()), losses
    # Steps have started from the weights of the classifier and are still near.
    for key, value in runner.model.backbone.state_dict().items():
        if key != 'pos_embed' and value.is_floating_point():
            assert value.isfinite().all() and (value - before[key]).abs().max() < 1e-2, key
    moved = runner.model.backbone.layers[0].attn.qkv.weight
    assert not torch.equal(moved, before['layers.0.attn.qkv.weight'])

    metrics = runner.val()
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    # As tools/test.py does.
    cfg.load_from = str(tmp_path / 'work' / 'epoch_1.pth')
    cfg.experiment_name += 'again'
    again = build_runner(cfg)
    assert again.test() == metrics


@pytest.mark.parametrize('detector', DETECTORS)
def test_prunes_while_it_trains(detector, coco_mini, tmp_path, no_looks):
    cfg = small_config(f'{detector}_deit-tiny_sfp_2cpu-12e_facemask.py', coco_mini, tmp_path / 'w')
    cfg.model.backbone.init_cfg = None
    cfg.train_cfg.update(max_epochs=3, val_interval=10)
    cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4, num_images=4)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert [ffn.sizes for ffn in find_ffns(runner.model)] == [dict(inputs=9, hidden=24)] * 2
    slim = load_config(str(tmp_path / 'w' / 'slim.py'), str(tmp_path / 'again'))
    slim.load_from = str(tmp_path / 'w' / 'slim.safetensors')
    slim.experiment_name = cfg.experiment_name + 'again'
    assert build_runner(slim).test() == runner.val()
