"""Tokens dropped in real runs: hook, checkpoint, resume, healing, detectors that refuse."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from test_pruning_hook import assert_same

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.analysis.report import draw_sizes
from mcf_mm.engine.report import report_checkpoint
from mcf_mm.pruning import find_units
from mcf_mm.weights.checkpoint import read_header

RATIOS = dict(heads=0.5, hidden=0.4, tokens=0.4)


@pytest.fixture
def cfg(cfg) -> Config:
    """Cuts at the start of epoch 1 of 3."""
    cfg.custom_hooks = [
        dict(type='mcf_mm.PruningHook', criterion=dict(type='HSIC'), ratios=RATIOS, epoch=1)
    ]
    cfg.custom_hooks[0].update(num_images=10)
    cfg.train_cfg.max_epochs = 3
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    return cfg


def tokens_of(model) -> list[int]:
    return [unit.sizes['tokens'] for unit in find_units(model).tokens]


def test_a_run_drops_tokens_and_its_config_builds_the_network(cfg, tmp_path):
    runner = Runner.from_cfg(cfg)
    runner.train()
    kept = tokens_of(runner.model)
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3
    header = read_header(Path(cfg.work_dir) / 'slim.safetensors')
    assert [header['sizes'][f'backbone.layers.{n}']['tokens'] for n in range(3)] == kept

    slim = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    assert slim.model.backbone.sizes.tokens == kept
    slim.work_dir, slim.experiment_name = str(tmp_path / 'test'), 'slim' + tmp_path.name
    again = Runner.from_cfg(slim)
    assert again.test() == runner.val()
    assert_same(again.model.state_dict(), runner.model.state_dict())


@pytest.mark.parametrize('epoch', [1, 2])
def test_resume_ends_with_the_same_weights(cfg, epoch, tmp_path):
    whole = Runner.from_cfg(cfg)
    whole.train()
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/epoch_{epoch}.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    assert tokens_of(resumed.model) == tokens_of(whole.model)


def test_a_network_that_drops_tokens_heals_by_class_token_and_scores(cfg):
    cfg.custom_hooks[0].update(heal=dict(epochs=2), epoch=0)
    cfg.train_cfg.max_epochs = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    heal = read_header(Path(cfg.work_dir) / 'slim.safetensors')['heal']
    assert heal['after']['loss'] <= heal['before']['loss']
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def test_an_average_of_weights_drops_the_same_tokens(cfg):
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    runner = Runner.from_cfg(cfg)
    runner.train()
    average = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert tokens_of(average.module) == tokens_of(runner.model)
    with torch.no_grad():
        assert runner.val()


def test_a_teacher_compares_blocks_where_tokens_are_dropped(cfg):
    cfg.custom_hooks[0].teacher = dict(logits=1.0, blocks=1.0)
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss_teacher_blocks').data[0]
    assert len(losses) and all(0 < loss < 100 for loss in losses)


@pytest.mark.parametrize('argument', ['heal', 'teacher'])
def test_detection_tokens_are_compared_by_nobody_yet(detection_cfg, argument):
    settings = dict(heal=dict(epochs=1), teacher=dict(logits=0.0, blocks=1.0))
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
            img_size=(64, 96),
            num_det_tokens=5,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=32),
    )
    detection_cfg.custom_hooks = [
        dict(type='mcf_mm.PruningHook', criterion='magnitude', ratios=dict(tokens=0.4), epoch=0)
    ]
    detection_cfg.custom_hooks[0][argument] = settings[argument]
    with pytest.raises(ValueError, match=f'{argument}: backbone.layers.0 drops patches'):
        Runner.from_cfg(detection_cfg).train()


def test_a_report_of_a_checkpoint_shows_its_tokens(cfg, tmp_path, monkeypatch):
    runner = Runner.from_cfg(cfg)
    runner.train()
    told = {}

    def noted(out_dir, full, sizes, inputs, before, after):
        told.update(full=full, sizes=sizes, after=after)
        return draw_sizes(out_dir, full, sizes, inputs, before, after)

    monkeypatch.setattr('mcf_mm.engine.report.draw_sizes', noted)
    checkpoint = Path(cfg.work_dir) / 'slim.safetensors'
    slim = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    pictures = report_checkpoint(slim, checkpoint, tmp_path / 'report')
    assert {path.name for path in pictures} >= {'kept_sizes.png', 'parts.png'}
    assert [told['sizes'][f'backbone.layers.{n}']['tokens'] for n in range(3)] == tokens_of(
        runner.model
    )
    assert told['full']['backbone.layers.0'] == dict(tokens=17)
    assert told['after'] == count_complexity(runner.model, (32, 32))
