"""How scores train: their rate, their penalty, mixed precision, several processes."""

import functools

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recording import find_hook
from searching import copied, groups_of, searched, train
from test_distributed import launch
from test_pruning_hook import assert_same

from mcf_mm.engine import ScoreSearchHook, bf16_optim_wrapper


@pytest.fixture
def cfg(cfg) -> Config:
    return searched(cfg)


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
    monkeypatch.setattr(bf16_optim_wrapper, 'fast_bf16', lambda device: True)  # as the other has it
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
