"""PruningHook to a budget inside real Runners and processes."""

import copy
import json
import signal
from pathlib import Path

import pytest
import torch
from budgets import assert_exact, built, error, widened
from fork_server import run_tool
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from recording import ROOT, environment, find_hook
from test_distributed import launch, records
from test_healing_runs import assert_same, with_large_weights

from mcf_mm.engine import PruningHook
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import cut, find_units
from mcf_mm.pruning.rotation import turn
from mcf_mm.search import measure_latency, read_latency
from mcf_mm.weights.checkpoint import read_header, read_state_dict


@pytest.fixture
def cfg(cfg, tmp_path) -> Config:
    """Cuts to a budget at the start of epoch 1 of 3."""
    widened(cfg).custom_hooks = [
        dict(type='mcf_mm.PruningHook', budget='params=75%', epoch=1, num_images=10)
    ]
    cfg.train_cfg.max_epochs = 3
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    torch.manual_seed(0)
    state_dict = with_large_weights(build_model(cfg)).state_dict()
    torch.save(dict(state_dict=state_dict), tmp_path / 'dense.pth')
    cfg.load_from = str(tmp_path / 'dense.pth')
    return cfg


def dense_of(cfg: Config) -> torch.nn.Module:
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(cfg.load_from)['state_dict'])
    return model


class Before(Hook):
    """Networks and state of the optimizer right before surgery."""

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner):
        hook = find_hook(runner, PruningHook)
        if runner.epoch == hook.pruning.cut_epoch:
            self.model, self.average = networks(runner)
            self.state = with_state(runner)


class After(Before):
    """The same right after surgery."""

    priority = 'VERY_LOW'


def networks(runner):
    """Copies of the model and of the average, if there is one."""
    average = find_hook(runner, EMAHook)
    return copy.deepcopy((runner.model, average and average.ema_model.module))


def with_state(runner) -> set[str]:
    """Parameters of which the optimizer remembers something."""
    state = runner.optim_wrapper.optimizer.state
    return {name for name, value in runner.model.named_parameters() if value in state}


def run(cfg):
    """A run, with what was there before and after surgery."""
    runner = Runner.from_cfg(cfg)
    before, after = Before(), After()
    runner.register_hook(before)
    runner.register_hook(after)
    runner.train()
    return runner, before, after


@pytest.mark.parametrize(
    'budget, kinds', [('params=75%', None), ('macs=70%', ['inputs', 'hidden', 'qk'])]
)
def test_the_cost_is_the_budget_to_the_last_element(cfg, budget, kinds):
    cfg.custom_hooks[0].update(budget=budget, kinds=kinds)
    runner, _, after = run(cfg)
    folder = Path(cfg.work_dir)
    small = built(folder)
    assert_exact(dense_of(cfg), small, budget, *([kinds] if kinds else []))
    assert_same(small.state_dict(), runner.model.state_dict())
    header = read_header(folder / 'slim.safetensors')
    assert header['budget'] == budget and header['kinds'] == kinds
    assert header['criterion'] == 'obs' and header['compensation'] == 'least_squares'
    # What was turned begins anew, the rest of the optimizer's state goes on.
    turned = {name for name, _ in find_hook(runner, PruningHook).pruning.criterion.turned}
    gone = {name for name, _ in runner.model.named_parameters()} - after.state
    assert turned and gone and all(name.rpartition('.attn.')[0] for name in gone)
    assert {name.partition('.attn.')[0] + '.attn' for name in gone} == turned
    optimizer = runner.optim_wrapper.optimizer
    for parameter in runner.model.parameters():
        assert optimizer.state[parameter]['exp_avg'].shape == parameter.shape


@pytest.mark.parametrize('compensation', ['least_squares', 'mean', 'none', 'sequential'])
def test_every_compensation_runs(cfg, compensation):
    cfg.custom_hooks[0].update(compensation=compensation, epoch=0)
    cfg.train_cfg.max_epochs = 1
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    runner, before, after = run(cfg)
    assert read_header(f'{cfg.work_dir}/slim.safetensors')['compensation'] == compensation
    assert_exact(before.model, after.model, 'params=75%')
    # At this moment the average is the model: whatever is done to one is done to the other.
    assert_same(after.average.state_dict(), after.model.state_dict())


@pytest.mark.parametrize('update_buffers', [False, True])
def test_the_average_is_turned_and_cut_as_the_model_is(cfg, update_buffers):
    cfg.custom_hooks[0].compensation = 'none'
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.2, update_buffers=update_buffers))
    cfg.optim_wrapper.optimizer.lr = 1e-2
    runner, before, after = run(cfg)
    pruning = find_hook(runner, PruningHook).pruning
    assert {kind for _, kind in pruning.criterion.turns} == {'qk', 'v'}
    images = torch.randn(8, 3, 32, 32)
    for own, small in ((before.model, after.model), (before.average, after.average)):
        again = copy.deepcopy(own).eval()
        expected = own.eval()(images)
        turn(find_units(again), pruning.criterion.turns)
        changed = [k for k, v in again.state_dict().items() if not v.equal(own.state_dict()[k])]
        assert changed and all('.attn.' in key for key in changed)
        torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=1e-4)
        cut(again, pruning.structure)
        assert_same(again.state_dict(), small.state_dict())
    # They are two networks.
    assert not after.model.head.layers.head.weight.equal(after.average.head.layers.head.weight)
    average = find_hook(runner, EMAHook).ema_model.module
    assert_same(average.state_dict(), read_state_dict(f'{cfg.work_dir}/slim.safetensors'))
    assert find_units(average).sizes == find_units(runner.model).sizes


@pytest.mark.parametrize('compensation', ['least_squares', 'sequential'])
def test_resume_ends_with_the_same_weights(cfg, tmp_path, compensation):
    cfg.custom_hooks[0].compensation = compensation
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    whole = Runner.from_cfg(cfg)
    whole.train()
    cfg.resume = True
    for epoch in (1, 2):  # before and after surgery
        cfg.load_from = str(tmp_path / f'work/epoch_{epoch}.pth')
        cfg.work_dir = str(tmp_path / f'resumed{epoch}')
        cfg.experiment_name = f'resumed{epoch}{tmp_path.name}'
        resumed = Runner.from_cfg(cfg)
        resumed.train()
        assert_same(whole.model.state_dict(), resumed.model.state_dict())
        averages = [find_hook(runner, EMAHook).ema_model.module for runner in (whole, resumed)]
        assert_same(averages[0].state_dict(), averages[1].state_dict())
    cfg.custom_hooks[0].budget = 'params=80%'
    cfg.experiment_name = 'other' + tmp_path.name
    with pytest.raises(ValueError, match="budget is 'params=80%' here and 'params=75%'"):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('kill', ['1 train', '2 train'])
def test_a_killed_run_goes_on_to_the_same_network(cfg, tmp_path, kill):
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks.append(dict(type='KillHook'))
    cfg.dump(tmp_path / 'micro.py')
    train = [ROOT / 'tools' / 'train.py', tmp_path / 'micro.py', '--work-dir']
    done = run_tool([*train, tmp_path / 'killed'], env=environment(KILL=kill))
    assert done.returncode in (-signal.SIGKILL, -signal.SIGXFSZ), done.stderr
    assert not (tmp_path / 'killed' / 'slim.safetensors').exists()
    for folder, more in (('killed', ['--resume']), ('whole', [])):
        done = run_tool([*train, tmp_path / folder, *more], env=environment())
        assert done.returncode == 0, done.stderr
    first, second = (
        read_state_dict(str(tmp_path / folder / 'slim.safetensors'))
        for folder in ('killed', 'whole')
    )
    assert_same(first, second)
    assert_exact(dense_of(cfg), built(tmp_path / 'killed'), 'params=75%')


@pytest.mark.parametrize(
    'compensation, num_images',
    [('least_squares', 10), ('sequential', 10), ('sequential', 4)],  # of 4 one process has none
)
def test_two_processes_end_with_one_network(cfg, tmp_path, compensation, num_images):
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks[0].update(compensation=compensation, num_images=num_images)
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.1), dict(type='RecordHook')]
    cfg.dump(tmp_path / 'micro.py')
    launch(tmp_path / 'micro.py', '--work-dir', tmp_path / 'two')
    first, second = records(tmp_path / 'two')
    assert first['wrapped'] and second['wrapped']
    for key in ('weights', 'average'):
        assert_same(first[key], second[key])
    small = built(tmp_path / 'two')
    assert_exact(dense_of(cfg), small, 'params=75%')
    assert_same(small.state_dict(), first['average'])
    shapes = {key: value.shape for key, value in first['weights'].items()}
    assert shapes == {key: value.shape for key, value in first['average'].items()}


@pytest.mark.parametrize('hook', ['obs', 'mcf', 'MCFPruningHook'])
def test_layers_solved_one_after_the_other_are_closer_to_dense(cfg, hook, tmp_path):
    arguments = dict(
        obs=dict(type='mcf_mm.PruningHook', budget='params=75%'),
        mcf=dict(type='mcf_mm.PruningHook', criterion='mcf', ratios=dict(hidden=0.4, inputs=0.4)),
        MCFPruningHook=dict(type='mcf_mm.MCFPruningHook', ratio=0.4),
    )[hook]
    cfg.train_cfg.max_epochs = 4 if hook == 'MCFPruningHook' else 1
    cfg.optim_wrapper.optimizer.lr = 0.0
    dense, errors = dense_of(cfg), []
    for compensation in ('none', 'sequential'):
        cfg.custom_hooks = [dict(arguments, compensation=compensation, num_images=10)]
        cfg.work_dir = str(tmp_path / compensation)
        cfg.experiment_name = compensation + tmp_path.name
        Runner.from_cfg(cfg).train()
        errors.append(error(cfg, built(tmp_path / compensation), dense))
    assert 0 < errors[1] < errors[0]


class Clock:
    """Stands still but for linear layers, so that times do not depend on the machine."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def tick(module, args, output):
    CLOCK.now += 1e-9 * module.weight.numel() * (output.numel() // output.shape[-1])


@pytest.fixture
def times(cfg, tmp_path) -> Path:
    """A file of times of the dense network."""
    model = dense_of(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(tick)
    images = torch.zeros(1, 3, 32, 32)
    latency = measure_latency(model, lambda model: model(images), rounds=1, clock=CLOCK)
    latency.facts |= {'shape': [32, 32], 'device': 'another machine'}
    latency.save(tmp_path / 'times.json')
    return tmp_path / 'times.json'


def test_a_budget_of_latency_is_met_by_times_of_another_machine(cfg, times):
    cfg.custom_hooks[0].update(budget='latency=80%', latency=str(times))
    runner, *_ = run(cfg)
    latency, sizes = read_latency(times, device=None), find_units(runner.model).sizes
    assert latency.of(sizes) <= 0.8 * latency.dense * (1 + 1e-9)
    for name, own in sizes.items():
        for kind, size in own.items():
            if size < latency.sizes[name][kind]:
                more = {**sizes, name: {**own, kind: size + 1}}
                assert latency.of(more) > 0.8 * latency.dense * (1 - 1e-8)
    header = read_header(f'{cfg.work_dir}/slim.safetensors')
    assert header['budget'] == 'latency=80%' and header['latency'] == times.name
    assert find_units(built(Path(cfg.work_dir))).sizes == sizes


def test_times_that_do_not_say_of_which_images_are_told_of(cfg, times):
    path = changed(times, lambda content: content['facts'].pop('shape'))
    cfg.custom_hooks[0].update(budget='latency=80%', latency=path)
    with pytest.warns(UserWarning, match=r'times\.json does not say of which size of image'):
        Runner.from_cfg(cfg).train()


def changed(times: Path, change) -> str:
    """The file with other content."""
    content = json.loads(times.read_text())
    change(content)
    times.write_text(json.dumps(content))
    return str(times)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(budget='latency=80%'), 'a budget of latency needs latency=FILE with measured times'),
        (dict(budget='latency=80%', latency='nowhere.json'), 'no file of measured times nowhere'),
        (dict(budget='macs=80%', latency='x.json'), 'no other budget does: got budget=macs=80%'),
        (dict(budget=None, latency='x.json'), 'no other budget does: got budget=None'),
        (dict(budget=None, kinds=['v']), 'kinds are for a budget: give one, or leave out'),
        (dict(budget='params=75%', ratios=dict(v=0.5)), 'give one of budget, ratios and sizes'),
        (dict(budget='params=75%', sizes={}), 'give one of budget, ratios and sizes'),
        (dict(budget='params=5%'), r'no policy meets the budget of .* is the least'),
        (dict(budget='params=100%'), 'meets the budget params=100% as it is'),
        (dict(budget='params=75%', kinds=['depth']), r"kinds names \['depth'\], the network has"),
        (dict(budget='params=75%', multiple=8), 'multiple must be 1, got 8'),
        (dict(budget='params=95%', criterion='mcf', kinds=['v']), "scores .* no .*'v'"),
    ],
    ids=str,
)
def test_bad_budgets_end_the_run_before_it_starts(cfg, arguments, message):
    cfg.custom_hooks = [{**cfg.custom_hooks[0], **arguments}]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Runner.from_cfg(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda content: content['sizes']['backbone.layers.0.ffn'].update(hidden=99),
            r'times\.json is of another network: backbone\.layers\.0\.ffn has',
        ),
        (
            lambda content: content['facts'].update(shape=[64, 64]),
            r'times\.json has times of images of \[64, 64\], the config has \[32, 32\]',
        ),
        (lambda content: content.pop('tables'), r'times\.json has no measured times'),
    ],
)
def test_times_of_something_else_end_the_run_before_it_starts(cfg, times, change, message):
    cfg.custom_hooks[0].update(budget='latency=80%', latency=changed(times, change))
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))
