"""The schedule of a config, cut to fewer epochs."""

import pytest
from mmengine.config import Config

from mcf_mm.engine.train import scale_schedule, shorten_schedule


def shortened(epochs: int, *schedulers: dict, steps: int = 100) -> Config:
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=300, val_interval=10, val_begin=250),
            param_scheduler=list(schedulers),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=10, save_best='auto')
            ),
        )
    )
    cfg.notes = shorten_schedule(cfg, epochs, steps)
    return cfg


WARM_UP = dict(type='LinearLR', by_epoch=True, end=30, convert_to_iter_based=True)
COSINE = dict(type='CosineAnnealingLR', by_epoch=True, begin=30, T_max=270)


def test_warm_up_and_decay_keep_their_shares():
    cfg = shortened(20, WARM_UP, COSINE)
    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=20, val_interval=20)
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.begin, warm_up['end']) == (0, 2)
    assert (cosine.begin, cosine.T_max) == (2, 18)
    checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
    assert cfg.default_hooks.checkpoint == checkpoint


def test_what_counts_in_steps_may_last_less_than_an_epoch():
    assert shortened(2, WARM_UP, COSINE).param_scheduler[0]['end'] == pytest.approx(0.2)


def test_what_nothing_is_left_of_is_named():
    cfg = shortened(2, WARM_UP, COSINE, steps=4)
    assert [part.type for part in cfg.param_scheduler] == ['CosineAnnealingLR']
    assert cfg.param_scheduler[0].begin == 0 and cfg.param_scheduler[0].T_max == 2
    assert cfg.notes == ['LinearLR of param_scheduler is left out: 2 epochs leave nothing of it']


def test_milestones_and_a_longer_run():
    cfg = shortened(600, dict(type='MultiStepLR', milestones=[100, 200], gamma=0.1))
    assert cfg.param_scheduler[0].milestones == [200, 400]
    (single,) = shortened(30, dict(type='StepLR', step_size=100)).param_scheduler
    assert single.step_size == 10


def test_times_in_iterations_are_scaled_alike():
    cfg = shortened(30, dict(type='LinearLR', by_epoch=False, end=500), COSINE)
    assert cfg.param_scheduler[0] == dict(type='LinearLR', by_epoch=False, begin=0, end=50)
    assert cfg.notes == []
    assert shortened(2, dict(type='LinearLR', by_epoch=False, end=50)).notes == [
        'LinearLR of param_scheduler is left out: 2 epochs leave nothing of it'
    ]


def test_validation_stays_as_it_is_where_it_fits():
    cfg = Config(dict(train_cfg=dict(max_epochs=40, val_interval=4, val_begin=3)))
    assert scale_schedule(cfg, 12) == []
    assert cfg.train_cfg == dict(max_epochs=12, val_interval=4, val_begin=3)
    scale_schedule(cfg, 2)
    assert cfg.train_cfg == dict(max_epochs=2, val_interval=2)


def test_other_decays_end_where_the_run_does():
    restarts = dict(type='CosineRestartLR', periods=[100, 200])
    exponential = dict(type='ExponentialLR', gamma=0.9)
    first, second = shortened(30, restarts, exponential).param_scheduler
    assert first.periods == [10, 20] and second.gamma**30 == pytest.approx(0.9**300)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match='does not train by epochs'):
        shorten_schedule(Config(dict(train_cfg=dict(max_iters=9))), 2, 9)
    by_optimizer = dict(param_scheduler=dict(gen=[], dis=[]), train_cfg=dict(max_epochs=9))
    with pytest.raises(ValueError, match='is for several optimizers, gen, dis'):
        scale_schedule(Config(by_optimizer), 3)
    with pytest.raises(ValueError, match='epochs must be at least 1, got 0'):
        scale_schedule(Config(dict(train_cfg=dict(max_epochs=9))), 0)
