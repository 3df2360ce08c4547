"""What real training runs have beside a model and an optimizer goes on working over surgery."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from recording import find_hook

from mcf_mm.engine import MCFPruningHook, bf16_optim_wrapper
from mcf_mm.engine.bf16_optim_wrapper import sdpa_kernel
from mcf_mm.pruning import find_ffns
from mcf_mm.weights.checkpoint import read_header, read_state_dict


@pytest.fixture
def watch():
    """Runs a config; the function it is given is called after each step."""

    def run(cfg, look):
        class Look(Hook):
            priority = 'LOWEST'

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                look(runner)

        runner = Runner.from_cfg(cfg)
        runner.register_hook(Look())
        runner.train()
        return runner

    return run


@pytest.mark.parametrize('update_buffers', [False, True])
def test_the_average_is_masked_cut_and_written(cfg, watch, update_buffers):
    cfg.custom_hooks[0].compensation = 'mean'
    cfg.custom_hooks.append(
        dict(type='EMAHook', momentum=0.1, update_buffers=update_buffers, begin_iter=2)
    )
    num_masked = []

    def look(runner):
        average = find_hook(runner, EMAHook).ema_model.module
        sparse = find_hook(runner, MCFPruningHook).pruning.sparse
        num_masked.append(len(sparse))
        for ffn in find_ffns(average):
            if ffn.name in sparse:
                assert not ffn.fc1.weight[~sparse[ffn.name].mask1.bool()].any()
                assert not ffn.fc2.weight[~sparse[ffn.name].mask2.bool()].any()

    runner = watch(cfg, look)
    assert num_masked == [1] * 3 + [2] * 3 + [3] * 3 + [0] * 6
    average = find_hook(runner, EMAHook).ema_model.module
    assert {tuple(ffn.sizes.values()) for ffn in find_ffns(average)} == {(9, 24)}
    # What was validated is what is written, and not the last weights.
    written = read_state_dict(str(Path(cfg.work_dir) / 'slim.safetensors'))
    checkpoint = read_state_dict(str(Path(cfg.work_dir) / 'epoch_5.pth'))
    assert written.keys() == checkpoint.keys() == runner.model.state_dict().keys()
    for key, value in average.state_dict().items():
        assert torch.equal(written[key], value) and torch.equal(checkpoint[key], value)
    assert not torch.equal(written['head.layers.head.weight'], runner.model.head.layers.head.weight)


@pytest.mark.parametrize('kind', ['mcf_mm.Bf16OptimWrapper', 'mmengine.AmpOptimWrapper'])
def test_mixed_precision(cfg, watch, kind):
    if 'Amp' in kind and not torch.cuda.is_available():
        pytest.skip('AmpOptimWrapper needs a GPU')
    cfg.optim_wrapper.type = kind
    cfg.randomness.deterministic = False
    runner = watch(cfg, lambda runner: None)
    assert {tuple(ffn.sizes.values()) for ffn in find_ffns(runner.model)} == {(9, 24)}
    assert all(value.dtype == torch.float32 for value in runner.model.parameters())
    assert all(value.isfinite().all() for value in runner.model.parameters())


@pytest.mark.parametrize('attention', [None, 'math', 'flash'])
def test_steps_in_bfloat16(cfg, watch, attention, monkeypatch):
    monkeypatch.setattr(bf16_optim_wrapper, 'fast_bf16', lambda device: True)
    if attention is not None and sdpa_kernel is None:
        cfg.optim_wrapper.update(type='mcf_mm.Bf16OptimWrapper', attention=attention)
        with pytest.raises(ValueError, match='needs torch 2.3 or newer'):
            Runner.from_cfg(cfg).train()
        return
    cfg.custom_hooks = []
    plain = watch(cfg, lambda runner: None).model.state_dict()
    cfg.work_dir, cfg.experiment_name = cfg.work_dir + '/half', 'half' + cfg.experiment_name
    cfg.optim_wrapper.update(type='mcf_mm.Bf16OptimWrapper', attention=attention)
    half = watch(cfg, lambda runner: None).model.state_dict()
    distances = [float((plain[name] - half[name]).abs().max()) for name in plain]
    assert 1e-6 < max(distances) < 2e-2


def test_a_processor_without_bfloat16_trains_in_float32_and_says_so_once(cfg, watch, monkeypatch):
    monkeypatch.setattr(bf16_optim_wrapper, 'fast_bf16', lambda device: False)
    cfg.custom_hooks = []
    plain = watch(cfg, lambda runner: None).model.state_dict()
    cfg.work_dir, cfg.experiment_name = cfg.work_dir + '/half', 'half' + cfg.experiment_name
    cfg.optim_wrapper.type = 'mcf_mm.Bf16OptimWrapper'
    runner = watch(cfg, lambda runner: None)
    assert all(torch.equal(plain[name], value) for name, value in runner.model.state_dict().items())
    (log,) = Path(cfg.work_dir).glob('*/*.log')
    assert log.read_text().count('this processor has no bfloat16 and would emulate it') == 1


def test_a_kernel_that_is_not_there_is_refused(cfg):
    cfg.optim_wrapper.update(type='mcf_mm.Bf16OptimWrapper', attention='fast')
    with pytest.raises(ValueError, match="attention must be None or one of math, flash, got 'fast"):
        Runner.from_cfg(cfg).train()


def test_accumulated_gradients_layer_wise_rates_and_schedulers(cfg, watch):
    # Nine steps before surgery: it falls in the middle of an accumulation.
    cfg.optim_wrapper.update(
        accumulative_counts=2,
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=6),
        dict(type='CosineAnnealingLR', T_max=5, begin=0, end=5),
    ]
    seen = []

    def look(runner):
        weight = find_ffns(runner.model)[0].fc1.weight
        optimizer = runner.optim_wrapper.optimizer
        held = {id(p) for group in optimizer.param_groups for p in group['params']}
        assert held == {id(p) for p in runner.model.parameters()}
        gradient = None if weight.grad is None else tuple(weight.grad.shape)
        seen.append((gradient, tuple(weight.shape), runner.optim_wrapper.get_lr()['lr']))

    runner = watch(cfg, look)
    # The last step of masking leaves a gradient; the first one after surgery uses it up.
    assert seen[8][:2] == ((40, 16), (40, 16)) and seen[9][:2] == (None, (24, 9))
    assert seen[10][:2] == ((24, 9), (24, 9))
    state = runner.optim_wrapper.optimizer.state
    assert all(
        state[parameter]['exp_avg'].shape == parameter.shape
        for parameter in runner.model.parameters()
    )
    # As without pruning: rates of the depths stay in proportion and follow the schedule.
    cfg.custom_hooks, plain = [], []
    cfg.work_dir, cfg.experiment_name = cfg.work_dir + '/plain', 'plain' + cfg.experiment_name
    watch(cfg, lambda runner: plain.append(runner.optim_wrapper.get_lr()['lr']))
    assert [rates for *_, rates in seen] == plain
    assert len(set(plain[0])) == 5


def test_the_origin_is_that_of_the_first_start(cfg, tmp_path):
    hooks, cfg.custom_hooks = cfg.custom_hooks, []
    cfg.train_cfg.max_epochs = 1
    Runner.from_cfg(cfg).train()
    dense = f'{cfg.work_dir}/epoch_1.pth'
    cfg.custom_hooks, cfg.train_cfg.max_epochs = hooks, 5
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'pruned'), 'pruned' + tmp_path.name
    cfg.load_from = dense
    Runner.from_cfg(cfg).train()
    cfg.experiment_name, cfg.resume = 'resumed' + tmp_path.name, True
    cfg.load_from = f'{cfg.work_dir}/epoch_4.pth'
    Runner.from_cfg(cfg).train()
    assert read_header(f'{cfg.work_dir}/slim.safetensors')['origin'] == Path(dense).name
