"""The search by learnable scores (SiDT) inside real Runners."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from recording import find_hook
from searching import KINDS, copied, groups_of, searched, train
from test_pruning_hook import assert_same

from mcf_mm.engine import ScoreSearchHook
from mcf_mm.engine.networks import build_model, pruned_network
from mcf_mm.pruning import Seen, find_units, mask
from mcf_mm.pruning.scores import Scores, searched_sizes
from mcf_mm.weights.checkpoint import read_header, read_state_dict


@pytest.fixture
def cfg(cfg) -> Config:
    return searched(cfg)


def test_search_cut_and_recovery(cfg, tmp_path):
    scores, losses = [], []

    def look(runner, pruning):
        if pruning.gates is not None:
            scores.append(copied(pruning.gates.values))
            losses.append(runner.message_hub.get_scalar('train/loss_scores').current())

    runner = train(cfg, ('after_train_iter', look, 'LOWEST'))
    assert len(scores) == 6 and {kind for _, kind in scores[0]} == set(KINDS)
    # The penalty of the first step is that of ones: 3 layers of 16 q/k, 16 v and 40 hidden units.
    assert losses[0] == pytest.approx(1e-3 * 3 * (16 + 16 + 40))
    assert all((one != 1).all() for one in scores[0].values())

    units = find_units(build_model(cfg))
    sizes = searched_sizes(units, scores[-1], dict.fromkeys(KINDS, 0.4))
    found = find_units(runner.model).sizes
    for name, kinds in sizes.items():
        assert {kind: found[name][kind] for kind in kinds} == kinds
    optimizer = runner.optim_wrapper.optimizer
    held = [parameter for group in groups_of(runner) for parameter in group['params']]
    assert {id(p) for p in held} == {id(p) for p in runner.model.parameters()}
    assert all(optimizer.state[p]['exp_avg'].shape == p.shape for p in held)
    modules = list(runner.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)

    assert 'train/loss_scores' not in runner.message_hub.log_scalars

    header = read_header(Path(cfg.work_dir) / 'slim.safetensors')
    wanted = dict(ratio=0.4, search_epochs=2, l1=1e-3, kinds=KINDS, lr_mult=20.0)
    assert {key: header[key] for key in wanted} == wanted and header['sizes'] == found
    slim = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    assert not slim.custom_hooks
    slim.work_dir, slim.experiment_name = str(tmp_path / 'test'), 'slim' + tmp_path.name
    again = Runner.from_cfg(slim)
    assert again.test() == runner.val()
    assert_same(again.model.state_dict(), runner.model.state_dict())
    assert list((Path(cfg.work_dir) / 'report').glob('*.png'))


@pytest.mark.parametrize('ratio', [0.0, 0.4])
def test_the_cut_network_is_the_gated_one_with_gates_of_zero(cfg, ratio):
    cfg.custom_hooks[0].ratio = ratio
    seen = {}

    def outputs(runner):
        modes = runner.model.training
        runner.model.train(False)
        with torch.no_grad():
            images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
            scores = runner.model.head(runner.model.extract_feat(images)).clone()
        runner.model.train(modes)
        return scores

    def before(runner, pruning):
        if runner.epoch == 2:
            values = copied(pruning.gates.values)
            sizes = searched_sizes(pruning.units, values, dict.fromkeys(KINDS, ratio))
            seen['kept'] = Scores(values).select(pruning.units, sizes, Seen({}))
            with mask(pruning.units, seen['kept']):  # on top of the scores
                seen['masked'] = outputs(runner)

    def after(runner, pruning):
        if runner.epoch == 2:
            seen['cut'] = outputs(runner)
            assert pruning.structure.to_json() == seen['kept'].to_json()

    moment = 'before_train_epoch'
    train(cfg, (moment, before, 'VERY_HIGH'), (moment, after, 'LOWEST'))
    torch.testing.assert_close(seen['cut'], seen['masked'], atol=1e-5, rtol=0)
    dropped = {kind for kinds in seen['kept'].values() for kind in kinds if kind in KINDS}
    assert dropped == set(KINDS)


def test_checkpoints_of_the_search_are_dense(cfg):
    cfg.train_cfg.update(val_interval=1)
    train(cfg)
    checkpoint = torch.load(f'{cfg.work_dir}/epoch_1.pth', weights_only=False)
    dense = build_model(cfg)
    dense.load_state_dict(checkpoint['state_dict'], strict=True)
    # And a search starts from dense weights.
    cfg.load_from, cfg.train_cfg.max_epochs = f'{cfg.work_dir}/epoch_1.pth', 3
    cfg.work_dir, cfg.experiment_name = cfg.work_dir + '/on', 'on' + cfg.experiment_name
    runner = train(cfg)
    log = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    assert 'do not match' not in log and 'missing keys' not in log


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_resume_ends_with_the_same_weights(cfg, epoch, tmp_path):
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=12, by_epoch=False)]
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    whole = train(cfg)
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/epoch_{epoch}.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    resumed = train(cfg)
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    averages = [find_hook(runner, EMAHook).ema_model.state_dict() for runner in (whole, resumed)]
    assert_same(*averages)
    structures = [find_hook(run, ScoreSearchHook).pruning.structure for run in (whole, resumed)]
    assert structures[0].to_json() == structures[1].to_json()
    assert [g['lr'] for g in groups_of(whole)] == [g['lr'] for g in groups_of(resumed)]


def test_a_search_with_other_settings_is_not_resumed(cfg, tmp_path):
    cfg.train_cfg.max_epochs = 3
    train(cfg)
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/epoch_1.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    cfg.custom_hooks[0].l1 = 2e-3
    with pytest.raises(ValueError, match='of ScoreSearchHook with other.*l1 is 0.002 here and 0.0'):
        train(cfg)


def test_the_average_is_folded_with_the_last_scores(cfg):
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.3))
    seen = {}

    def weight(runner):
        average = find_hook(runner, EMAHook).ema_model.module
        return average.backbone.layers[1].ffn.layers[1].weight.detach().clone()

    def before(runner, pruning):
        if runner.epoch == 2:
            seen['scores'] = copied(pruning.gates.values)['backbone.layers.1.ffn', 'hidden']
            seen['dense'] = weight(runner)

    def after(runner, pruning):
        if runner.epoch == 2:
            kept = pruning.structure['backbone.layers.1.ffn']['hidden']
            folded = (seen['dense'] * seen['scores'])[:, kept]
            torch.testing.assert_close(weight(runner), folded, atol=1e-7, rtol=1e-6)
            own = runner.model.backbone.layers[1].ffn.layers[1].weight
            assert not torch.equal(weight(runner), own)

    moment = 'before_train_epoch'
    runner = train(cfg, (moment, before, 'VERY_HIGH'), (moment, after, 'LOWEST'))
    average = find_hook(runner, EMAHook).ema_model.module
    written = read_state_dict(str(Path(cfg.work_dir) / 'slim.safetensors'))
    assert_same(written, average.state_dict())
    assert not any('score' in key for key in average.state_dict())


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_detector(detection_cfg, with_cp):
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
            img_size=(64, 96),
            num_det_tokens=5,
            with_cp=with_cp,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=32),
    )
    hook = dict(type='mcf_mm.ScoreSearchHook', ratio=0.4, search_epochs=1, num_images=10)
    hook.update(kinds=[*KINDS, 'inputs'], compensation='least_squares', lr_mult=10)
    detection_cfg.custom_hooks = [hook]
    detection_cfg.train_cfg.max_epochs = 2
    runner = train(detection_cfg)
    every = [unit.sizes for unit in find_units(runner.model)]
    total = {
        kind: sum(own.get(kind, 0) * (2 if kind in ('qk', 'v') else 1) for own in every)
        for kind in hook['kinds']
    }
    for kind, full in dict(qk=96, v=96, hidden=192, inputs=96).items():
        assert abs(total[kind] - 0.6 * full) <= 3.5, (kind, total)
    slim = Config.fromfile(f'{detection_cfg.work_dir}/slim.py')
    again = build_model(slim)
    again.load_state_dict(read_state_dict(f'{detection_cfg.work_dir}/slim.safetensors'))
    assert find_units(again).sizes == find_units(runner.model).sizes


@pytest.mark.parametrize(
    'more', [dict(teacher=dict(logits=1.0)), dict(heal=dict(epochs=2)), dict(compensation='mean')]
)
def test_what_other_pruning_hooks_can(cfg, more):
    cfg.custom_hooks[0].update(more)
    cfg.train_cfg.max_epochs = 3
    runner = train(cfg)
    assert find_hook(runner, ScoreSearchHook).is_small
    assert all(value.isfinite().all() for value in runner.model.parameters())


def test_the_network_that_the_hook_will_leave_is_known_in_size(cfg):
    sizes = find_units(pruned_network(cfg, build_model(cfg))).sizes
    assert sizes['backbone.layers.0.attn'] == dict(heads=2, qk=4, v=4)
    assert sizes['backbone.layers.0.ffn'] == dict(inputs=16, hidden=24)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(ratio=1.0), r'ratio must be a number in \[0, 1\), got 1.0'),
        (dict(ratio=-0.1), r'ratio must be a number in \[0, 1\), got -0.1'),
        (dict(ratio=dict(qk=0.2, v=0.2, hidden=2)), r'ratio of hidden must be .* got 2'),
        (dict(ratio=dict(qk=0.2)), r"ratio must name the kinds .*'qk', 'v', 'hidden'.* got .*qk"),
        (dict(search_epochs=4), 'search_epochs is 4 and train_cfg.max_epochs 4: a search must be'),
        (dict(search_epochs=0), 'search_epochs must be at least 1, got 0'),
        (dict(l1=-1e-4), 'l1 must be a number of 0 or more, got -0.0001'),
        (dict(lr_mult=0), 'lr_mult must be a number of more than 0, got 0'),
        (dict(kinds=['heads']), r"kinds must be some of \['qk', .*'inputs'\], got \['heads'\]"),
        (dict(kinds=[]), r'kinds must be some of .* got \[\]'),
        (dict(compensation='best'), "compensation must be .* got 'best'"),
    ],
)
def test_bad_arguments_end_the_run_before_it_starts(cfg, arguments, message):
    cfg.custom_hooks = [{**cfg.custom_hooks[0], **arguments}]
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))
