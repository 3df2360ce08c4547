"""In-run pruning over two processes (gloo), and what cannot be cut is refused."""

from pathlib import Path

import pytest
import torch
from fork_server import run_ranks, run_tool
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recording import ROOT, environment

from mcf_mm.engine import MCFPruningHook
from mcf_mm.engine.runner import require_supported_parallelism


def launch(config, *arguments, torchrun=False):
    """Two processes of tools/train.py; a hang ends in an error."""
    script = [ROOT / 'tools' / 'train.py', config, '--launcher', 'pytorch', *arguments]
    settings = dict(env=environment(CUDA_VISIBLE_DEVICES=''), timeout=400)
    if torchrun:
        command = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
        done = [run_tool([*command, *script], bare=True, **settings)]
    else:
        done = run_ranks(script, 2, **settings)
    assert not any(process.returncode for process in done), done


def records(work_dir):
    return [torch.load(work_dir / f'rank{rank}.pt') for rank in (0, 1)]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.fixture
def distributed_cfg(cfg):
    """Everything at once that surgery has to survive."""
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks[0].compensation = 'least_squares'
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.1), dict(type='RecordHook')]
    # Two steps an epoch: surgery after the sixth falls between two updates.
    cfg.optim_wrapper.update(
        accumulative_counts=4,
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    return cfg


class Stop(Hook):
    """Ends a run before its first step."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise InterruptedError


def test_two_processes_prune_alike_and_resume_to_the_same_weights(distributed_cfg, tmp_path):
    cfg = distributed_cfg
    cfg.dump(tmp_path / 'micro.py')
    whole = tmp_path / 'whole'
    launch(tmp_path / 'micro.py', '--work-dir', whole)
    first, second = records(whole)
    assert first['wrapped'] and second['wrapped']
    assert [len(masks) for masks in first['masks']] == [1, 2, 3, 0, 0]
    for ours, theirs in zip(first['masks'], second['masks'], strict=True):
        assert ours.keys() == theirs.keys()
        for name, masks in ours.items():
            assert all(map(torch.equal, masks, theirs[name]))
    for key in ('weights', 'average'):
        assert_equal(first[key], second[key])
        assert first[key]['backbone.layers.1.ffn.layers.0.0.weight'].shape == (24, 9)
    assert len(set(first['lr'])) == 5  # one learning rate for each depth

    # The checkpoint of epoch 4 is small and between no updates.
    resumed = tmp_path / 'resumed'
    checkpoint = whole / 'epoch_4.pth'
    launch(tmp_path / 'micro.py', '--work-dir', resumed, '--resume', checkpoint, torchrun=True)
    for key in ('weights', 'average'):
        assert_equal(records(resumed)[1][key], first[key])

    # One process, in which the first count sees the same weights, marks the same.
    cfg.work_dir = str(tmp_path / 'single')
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop())
    with pytest.raises(InterruptedError):
        runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, MCFPruningHook))
    assert list(hook.pruning.sparse) == list(first['masks'][0]) == ['backbone.layers.2.ffn']
    (sparse,), (masks,) = hook.pruning.sparse.values(), first['masks'][0].values()
    assert torch.equal(sparse.mask1, masks[0]) and torch.equal(sparse.mask2, masks[1])


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel'), launcher='pytorch'),
            'model_wrapper_cfg.type is MMFullyShardedDataParallel: MCFPruningHook trains in one',
        ),
        (dict(runner_type='FlexibleRunner'), 'runner_type is FlexibleRunner: MCFPruningHook'),
        (dict(strategy=dict(type='DeepSpeedStrategy')), "strategy is .*'DeepSpeedStrategy'.*tools"),
    ],
)
def test_sharded_training_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        require_supported_parallelism(Config(settings))


def test_data_parallel_is_not():
    for kind in ('MMDistributedDataParallel', 'mmengine.MMDistributedDataParallel'):
        settings = dict(model_wrapper_cfg=dict(type=kind), launcher='pytorch')
        require_supported_parallelism(Config(settings))
    require_supported_parallelism(Config(dict(launcher='pytorch')))


def test_the_hook_refuses_a_strategy_before_training(cfg):
    cfg.strategy = dict(type='DeepSpeedStrategy')
    with pytest.raises(ValueError, match='strategy is .*DeepSpeedStrategy'):
        Runner.from_cfg(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))
