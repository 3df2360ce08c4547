"""The search by learnable scores (SiDT) inside real Runners."""

import functools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from recording import find_hook
from test_distributed import launch
from test_pruning_hook import assert_same

from mcf_mm.engine import ScoreSearchHook
from mcf_mm.engine.networks import build_model, pruned_network
from mcf_mm.pruning import Seen, find_units, mask
from mcf_mm.pruning.scores import Scores, searched_sizes
from mcf_mm.weights.checkpoint import read_header, read_state_dict

KINDS = ['qk', 'v', 'hidden']


@pytest.fixture
def cfg(cfg) -> Config:
    """Searches 2 of 4 epochs, three steps each."""
    hook = dict(type='mcf_mm.ScoreSearchHook', ratio=0.4, search_epochs=2, l1=1e-3, lr_mult=20.0)
    cfg.custom_hooks = [dict(hook, num_images=10)]
    cfg.train_cfg.max_epochs = 4
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    return cfg


class At(Hook):
    """Calls ``look(runner, pruning)`` at a moment."""

    def __init__(self, moment: str, look):
        def call(runner, *args, **kwargs):
            look(runner, find_hook(runner, ScoreSearchHook).pruning)

        setattr(self, moment, call)


def train(cfg: Config, *looks: tuple) -> Runner:
    """Runs a config; ``looks`` are moments, what is called then, and priorities."""
    runner = Runner.from_cfg(cfg)
    for moment, look, priority in looks:
        runner.register_hook(At(moment, look), priority)
    runner.train()
    return runner


def copied(values) -> dict:
    return {key: value.detach().clone() for key, value in values.items()}


def groups_of(runner) -> list[dict]:
    return runner.optim_wrapper.optimizer.param_groups


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


def test_the_rate_follows_the_schedule_and_there_is_no_decay(cfg):
    cfg.optim_wrapper.update(
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4),
        dict(type='CosineAnnealingLR', T_max=4, begin=0, end=4),
    ]
    rates, plain, own = [], [], []

    def look(runner, pruning):
        groups = groups_of(runner)
        if pruning.gates is not None:
            *groups, scores = groups
            assert {id(p) for p in scores['params']} == {
                id(score) for score in pruning.gates.values.values()
            }
            assert scores['weight_decay'] == 0
            last = runner.model.backbone.layers[-1].ffn.layers[1].weight
            model = next(g for g in groups if any(p is last for p in g['params']))
            assert scores['lr'] == pytest.approx(20 * model['lr'], rel=1e-9)
            own.append(scores['lr'])
        rates.append([group['lr'] for group in groups])

    def quiet(runner):
        plain.append([group['lr'] for group in groups_of(runner)])

    train(cfg, ('after_train_iter', look, 'LOWEST'))
    assert len(own) == 6 and len(set(own)) > 3  # a warm-up, then the cosine
    cfg.custom_hooks = []
    cfg.work_dir, cfg.experiment_name = cfg.work_dir + '/plain', 'plain' + cfg.experiment_name

    class Quiet(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            quiet(runner)

    runner = Runner.from_cfg(cfg)
    runner.register_hook(Quiet(), 'LOWEST')
    runner.train()
    assert rates == plain  # nothing else has changed


@pytest.mark.parametrize(
    'scheduler',
    [
        dict(type='OneCycleLR', eta_max=1e-2, total_steps=12, by_epoch=False),
        dict(type='CosineAnnealingMomentum', T_max=12, eta_min=0.5, by_epoch=False),
        dict(type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater', patience=0),
    ],
    ids=lambda scheduler: scheduler['type'],
)
def test_other_schedulers(cfg, scheduler):
    cfg.param_scheduler = [scheduler]

    def look(runner, pruning):
        if pruning.gates is not None:
            *groups, scores = groups_of(runner)
            assert scores['lr'] == pytest.approx(20 * groups[0]['lr'])
            assert scores['betas'] == groups[0]['betas']

    runner = train(cfg, ('after_train_iter', look, 'LOWEST'))
    assert len(groups_of(runner)) == len(runner.param_schedulers[0]._last_value)


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


@pytest.mark.parametrize('kind', ['mcf_mm.Bf16OptimWrapper', 'mmengine.AmpOptimWrapper'])
def test_mixed_precision_accumulation_and_clipping(cfg, kind):
    if 'Amp' in kind and not torch.cuda.is_available():
        pytest.skip('AmpOptimWrapper needs a GPU')
    cfg.optim_wrapper.update(type=kind, accumulative_counts=3, clip_grad=dict(max_norm=1.0))
    cfg.randomness.deterministic = False
    gradients = []

    def look(runner, pruning):
        if pruning.gates is not None:
            score = next(iter(pruning.gates.values.values()))
            assert score.dtype == torch.float32
            gradients.append(score.grad is not None and bool(score.grad.any()))

    runner = train(cfg, ('after_train_iter', look, 'LOWEST'))
    assert gradients == [True, True, False] * 2
    assert all(value.isfinite().all() for value in runner.model.parameters())
    assert find_hook(runner, ScoreSearchHook).is_small


def test_the_penalty_does_not_depend_on_the_scale_of_the_loss(cfg, monkeypatch):
    """With a scaler of losses, here on the CPU, scores learn what they learn without."""
    wrapper = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('needs torch 2.3 or newer')
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
    cfg.custom_hooks[0].l1 = 1e-2
    cfg.randomness.deterministic = False
    found = []
    for kind in (
        dict(type='mcf_mm.Bf16OptimWrapper'),
        dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1024.0),
    ):
        cfg.optim_wrapper.update(kind)
        cfg.experiment_name = cfg.experiment_name + 'x'
        scores = []

        def look(runner, pruning, scores=scores):
            if pruning.gates is not None:
                scores.append(copied(pruning.gates.values))

        with monkeypatch.context() as patch:
            patch.setattr(f'{wrapper}.is_cuda_available', lambda: True)
            scaler = functools.partial(torch.amp.GradScaler, device='cpu')
            patch.setattr(f'{wrapper}.GradScaler', scaler)
            train(cfg, ('after_train_iter', look, 'LOWEST'))
        found.append(scores)
    assert len(found[0]) == len(found[1]) == 6
    for first, second in zip(*found, strict=True):
        for key, score in first.items():
            torch.testing.assert_close(score, second[key], atol=1e-4, rtol=0)
            assert (score - 1).abs().mean() > 1e-3


def test_the_penalty_does_not_depend_on_accumulation(cfg):
    """Of two small batches, which the wrapper divides by two, it is that of one large batch."""
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
    cfg.train_dataloader.sampler.shuffle = False
    found = []
    for size, counts in ((10, 1), (5, 2)):
        cfg.train_dataloader.batch_size = size
        cfg.optim_wrapper.accumulative_counts = counts
        cfg.work_dir = f'{cfg.work_dir}/{size}'
        cfg.experiment_name = f'{size}{cfg.experiment_name}'
        scores = []

        def look(runner, pruning, scores=scores):
            if pruning.gates is not None:
                scores.append(copied(pruning.gates.values))

        train(cfg, ('after_train_epoch', look, 'LOWEST'))
        found.append(scores)
    assert len(found[0]) == len(found[1]) == 2
    for first, second in zip(*found, strict=True):
        for key, score in first.items():
            torch.testing.assert_close(score, second[key], atol=1e-6, rtol=0)


def test_two_processes_have_the_scores_of_one_with_the_whole_batch(cfg, tmp_path):
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks[0].update(search_epochs=3, l1=1e-2)
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.1), dict(type='RecordScoresHook')]
    # Clipped by a norm that scores have a part in.
    cfg.optim_wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=dict(max_norm=0.2)
    )
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_dataloader.batch_size = 5
    cfg.dump(tmp_path / 'micro.py')
    both = tmp_path / 'both'
    launch(tmp_path / 'micro.py', '--work-dir', both)
    first, second = (torch.load(both / f'scores{rank}.pt') for rank in (0, 1))
    assert len(first['scores']) == len(second['scores']) == 3
    for ours, theirs in zip(first['scores'], second['scores'], strict=True):
        assert_same(ours, theirs)
    for key in ('weights', 'average'):
        assert_same(first[key], second[key])

    cfg.train_dataloader.batch_size = 10
    cfg.work_dir = str(tmp_path / 'single')
    train(cfg)
    single = torch.load(tmp_path / 'single' / 'scores0.pt')
    for ours, alone in zip(first['scores'], single['scores'], strict=True):
        for key, score in ours.items():
            assert (score - 1).abs().max() > 1e-3
            torch.testing.assert_close(score, alone[key], atol=1e-5, rtol=0)

    # Killed in the search, it goes on to the same.
    resumed = tmp_path / 'resumed'
    launch(tmp_path / 'micro.py', '--work-dir', resumed, '--resume', both / 'epoch_2.pth')
    again = torch.load(resumed / 'scores1.pt')
    assert_same(again['scores'][-1], first['scores'][-1])
    assert_same(again['weights'], first['weights'])


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
