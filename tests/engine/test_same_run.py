"""--resume takes checkpoints of the same run alone; weights that do not fit stop a run."""

import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.networks import build_model
from mcf_mm.engine.resume import make_resumable, resume_limits
from mcf_mm.engine.runner import build_runner, check_pretrained
from mcf_mm.weights.checkpoint import load_weights


@pytest.fixture
def cfg(cfg) -> Config:
    cfg.custom_hooks = [dict(type='mcf_mm.SameRunHook')]
    cfg.train_cfg.max_epochs = 2
    return cfg


def resumed(cfg, tmp_path, name='again') -> Config:
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/epoch_1.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / name), name + tmp_path.name
    return cfg


@pytest.mark.parametrize(
    'part, value, message',
    [
        ('optim_wrapper.optimizer.lr', 5e-3, r'optim_wrapper.optimizer.lr is 0.005 here and 0.001'),
        ('randomness.seed', 3, 'randomness.seed is 3 here and 0 there'),
        ('train_cfg.max_epochs', 3, 'train_cfg.max_epochs is 3 here and 2 there'),
        ('train_dataloader.batch_size', 2, 'train_dataloader.batch_size is 2 here and 4 there'),
        (
            'data_preprocessor.mean',
            [0.0] * 3,
            r'data_preprocessor.mean.0 is 0.0 here and 127.0 there',
        ),
        (
            'custom_hooks',
            [dict(type='mcf_mm.SameRunHook'), dict(type='EMAHook', momentum=0.2)],
            r'EMAHook.type is .EMAHook. here and None there.*EMAHook.momentum is 0.2 here',
        ),
        (
            'custom_hooks',
            [dict(type='mcf_mm.SameRunHook'), dict(type='mcf_mm.MCFPruningHook')],
            r'pruning hook is .MCFPruningHook. here and None there',
        ),
        ('model.head.loss', dict(type='LabelSmoothLoss', label_smooth_val=0.1), 'model.head.loss'),
    ],
)
def test_another_run_is_refused_by_name(cfg, tmp_path, part, value, message):
    Runner.from_cfg(cfg).train()
    cfg = resumed(cfg, tmp_path)
    cfg.merge_from_dict({part: value})
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize(
    'name, message',
    [
        ('cat/more.png', r'number of training images is 11 here and 10 there'),
        ('zebra/1.png', r"classes is 'cat, dog, zebra' here and 'cat, dog' there"),
    ],
)
def test_other_data_in_the_same_place_are_refused(cfg, photos, tmp_path, name, message):
    Runner.from_cfg(cfg).train()
    (photos / name).parent.mkdir(exist_ok=True)
    shutil.copy(photos / 'cat' / '0.png', photos / name)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(resumed(cfg, tmp_path)).train()


def test_a_pruning_run_without_its_hook_is_refused(cfg, tmp_path):
    hook = dict(type='mcf_mm.MCFPruningHook', ratio=0.4, num_images=10)
    cfg.custom_hooks = [hook, *cfg.custom_hooks]
    cfg.train_cfg.max_epochs = 4
    Runner.from_cfg(cfg).train()
    cfg = resumed(cfg, tmp_path)
    cfg.custom_hooks = cfg.custom_hooks[1:]
    with pytest.raises(ValueError, match="pruning hook is None here and 'MCFPruningHook' there"):
        Runner.from_cfg(cfg).train()


def test_workers_and_validation_may_change(cfg, tmp_path):
    Runner.from_cfg(cfg).train()
    cfg = resumed(cfg, tmp_path)
    cfg.train_cfg.val_interval = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.epoch == 2


def test_a_checkpoint_without_a_note_is_taken_and_said(cfg, tmp_path):
    cfg.custom_hooks = []
    Runner.from_cfg(cfg).train()
    cfg = resumed(cfg, tmp_path)
    cfg.custom_hooks = [dict(type='mcf_mm.SameRunHook')]
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next((tmp_path / 'again').rglob('*.log')).read_text()
    assert 'does not say with which model' in log


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(train_cfg=dict(by_epoch=False, max_iters=9)), 'counts in iterations'),
        (dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=9)), 'counts in iterations'),
        (
            dict(default_hooks=dict(checkpoint=dict(by_epoch=False, interval=2))),
            'checkpoints are by iteration',
        ),
        (dict(randomness=dict(seed=None)), 'randomness has no seed'),
    ],
)
def test_what_cannot_be_resumed_to_the_same_weights_is_told(cfg, changes, message):
    assert resume_limits(cfg) == []
    cfg.merge_from_dict(changes)
    (limit,) = resume_limits(cfg)
    assert message in limit


@pytest.mark.parametrize('counts, told', [(2, True), (3, False)])
def test_gradients_accumulated_over_the_end_of_an_epoch_are_told(cfg, counts, told):
    cfg.optim_wrapper.accumulative_counts = counts  # an epoch has 3 iterations
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next(Path(cfg.work_dir).rglob('*.log')).read_text()
    assert ('no multiple of accumulative_counts=2' in log) == told


@pytest.mark.parametrize('interval, iteration', [(2, 2), (2, 4), (5, 5), (3, 3)])  # 3 in an epoch
@pytest.mark.parametrize('prunes', [False, True])
def test_a_checkpoint_of_the_middle_of_an_epoch_is_refused(
    cfg, tmp_path, interval, iteration, prunes
):
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=interval)
    if prunes:
        hook = dict(type='mcf_mm.MCFPruningHook', num_images=10)
        cfg.custom_hooks, cfg.train_cfg.max_epochs = [hook, *cfg.custom_hooks], 4
    Runner.from_cfg(cfg).train()
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/iter_{iteration}.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'again'), 'again' + tmp_path.name
    message = rf'iter_{iteration}.pth was written before its epoch ended \(iteration {iteration}\)'
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


def test_a_checkpoint_of_the_end_of_an_epoch_is_taken(cfg, tmp_path):
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    Runner.from_cfg(cfg).train()
    runner = Runner.from_cfg(resumed(cfg, tmp_path))
    runner.train()
    assert runner.epoch == 2


def test_weights_that_do_not_fit_stop_training(cfg, tmp_path):
    make_resumable(cfg)
    runner = build_runner(cfg)
    weights = runner.model.state_dict()
    for name, keep, message in (
        ('timm', lambda k: k.startswith('head'), r'lacks \d+ of the weights'),
        ('deep', lambda k: True, r"weight that .* lacks, the first 'backbone.layers.7.ln1.weight'"),
    ):
        chosen = {key: value for key, value in weights.items() if keep(key)}
        if name == 'deep':
            extra = 'backbone.layers.7.ln1.weight'
            chosen[extra] = torch.ones(16)
        path = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict=chosen), path)
        bad = cfg.copy()
        bad.load_from, bad.experiment_name = str(path), name + tmp_path.name
        with pytest.raises(ValueError, match=message):
            build_runner(bad).train()


def test_a_head_of_another_task_is_new_in_training_and_refused_in_a_test(cfg, tmp_path):
    make_resumable(cfg)
    weights = build_runner(cfg).model.state_dict()
    weights['head.layers.head.weight'] = torch.ones(7, 16)
    weights['head.layers.head.bias'] = torch.ones(7)
    path = tmp_path / 'seven.pth'
    torch.save(dict(state_dict=weights), path)
    cfg.load_from, cfg.experiment_name = str(path), 'seven' + tmp_path.name
    build_runner(cfg).train()
    # Of both runners: they may have begun in different seconds.
    log = ''.join(path.read_text() for path in (tmp_path / 'work').rglob('*.log'))
    assert 'new from the start: head.layers.head' in log
    cfg.experiment_name = 'test' + tmp_path.name
    with pytest.raises(ValueError, match=r'head.layers.head.weight is \(7, 16\)'):
        build_runner(cfg).test()


def test_a_part_whose_weights_are_not_in_its_checkpoint_stops_training(cfg, tmp_path):
    cfg.model.backbone.type = 'VisionTransformer'
    make_resumable(cfg)
    runner = build_runner(cfg)
    path = tmp_path / 'other.pth'
    torch.save({f'encoder.{k}': v for k, v in runner.model.backbone.state_dict().items()}, path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    cfg.experiment_name = 'init' + tmp_path.name
    with pytest.raises(ValueError, match=r'init_cfg of backbone: .*other.pth lacks'):
        build_runner(cfg).train()
    cfg.model.backbone.init_cfg.prefix = 'encoder.'
    cfg.experiment_name = 'fits' + tmp_path.name
    build_runner(cfg).train()


def drop_layer(weights: dict) -> dict:
    return {key: value for key, value in weights.items() if not key.startswith('layers.1.')}


def add_layer(weights: dict) -> dict:
    more = {
        key.replace('layers.1.', 'layers.3.', 1): value
        for key, value in weights.items()
        if key.startswith('layers.1.')
    }
    return {**weights, **more}


def other_patches(weights: dict) -> dict:
    key = 'patch_embed.projection.weight'
    return {**weights, key: weights[key][..., :4, :4].clone()}


def other_width(weights: dict) -> dict:
    key = 'layers.2.ffn.layers.1.bias'
    return {**weights, key: weights[key][:8].clone()}


def not_a_number(weights: dict) -> dict:
    return {**weights, 'ln1.weight': torch.full_like(weights['ln1.weight'], float('nan'))}


@pytest.mark.parametrize(
    'change, message',
    [
        (drop_layer, r'lacks layers, \d+ weights in all, the first layers.1.ln1.weight, \(16,\)'),
        (add_layer, r'has more layers, 12 weights in all, the first layers.3.ln1.weight'),
        (other_patches, r'patch_embed.projection.weight is \(16, 3, 4, 4\), not \(16, 3, 8, 8\)'),
        (other_width, r'layers.2.ffn.layers.1.bias is \(8,\), not \(16,\)'),
        (not_a_number, r'is NaN or infinite in 1 weight: (backbone\.)?ln1.weight'),
    ],
)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_part_whose_checkpoint_is_of_another_size_stops_training(
    cfg, tmp_path, change, message, prefix
):
    cfg.model.backbone.type = 'VisionTransformer'
    weights = change(build_model(cfg).backbone.state_dict())
    path = tmp_path / 'part.pth'
    torch.save({f'{prefix}{key}': value for key, value in weights.items()}, path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    if prefix:
        cfg.model.backbone.init_cfg.prefix = prefix
    with pytest.raises(ValueError, match=rf'part.pth .*{message}'):
        check_pretrained(build_model(cfg))


def test_a_part_may_have_what_its_checkpoint_lacks(cfg, tmp_path):
    cfg.model.backbone.type = 'VisionTransformer'
    weights = build_model(cfg).backbone.state_dict()
    del weights['ln1.weight'], weights['ln1.bias']  # as for a detector
    weights['pos_embed'] = torch.zeros(1, 5, 16)  # of smaller images
    weights['fc.weight'] = torch.zeros(7, 16)
    path = tmp_path / 'part.pth'
    torch.save(weights, path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    check_pretrained(build_model(cfg))


def test_names_of_another_library_are_told_for_slim_networks_too(cfg, tmp_path):
    weights = {
        key.removeprefix('backbone.'): value for key, value in build_model(cfg).state_dict().items()
    }
    path = tmp_path / 'bare.pth'
    torch.save(weights, path)
    with pytest.raises(
        ValueError, match=r"lacks \d+ of the weights of ImageClassifier.*'cls_token'"
    ):
        load_weights(build_model(cfg), path, allow_new_head=True)
