"""Shared weights trained on random policies: each on the budget, the network whole in between."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recording import find_hook
from test_pruning_hook import assert_same

from mcf_mm.engine import RandomPolicyHook
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_units


@pytest.fixture
def cfg(cfg) -> Config:
    cfg.custom_hooks = [dict(type='mcf_mm.RandomPolicyHook', budget='macs=75%', num_images=10)]
    cfg.train_cfg.max_epochs = 2
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    return cfg


class Look(Hook):
    """Notes what the network is in the middle of each iteration and after it."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.during, self.dropped, self.after = [], [], []

    def before_train_iter(self, runner, *args, **kwargs):
        units = find_units(runner.model)
        gates = find_hook(runner, RandomPolicyHook).policies.gates
        self.during.append([unit.sizes['tokens'] for unit in units.tokens])
        self.dropped.append(sum(int((gate == 0).sum()) for gate in gates.values.values()))

    def after_train_iter(self, runner, *args, **kwargs):
        self.after.append(set(runner.model.state_dict()))


def test_each_iteration_trains_another_part_of_the_dense_network(cfg):
    runner, look = Runner.from_cfg(cfg), Look()
    runner.register_hook(look)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    assert len({str(tokens) for tokens in look.during}) > 1 or len(set(look.dropped)) > 1
    assert all(dropped > 0 for dropped in look.dropped)
    assert all(keys == set(before) for keys in look.after)
    policies = find_hook(runner, RandomPolicyHook).policies
    wanted = policies.shape.wanted
    costs = [policies.shape.costs.of(policies.sizes(number))['macs'] for number in range(20)]
    assert max(costs) <= wanted and min(costs) > 0.97 * wanted
    assert policies.sizes(3) == policies.sizes(3) != policies.sizes(4)
    checkpoint = torch.load(f'{cfg.work_dir}/epoch_2.pth', weights_only=False)['state_dict']
    build_model(cfg).load_state_dict(checkpoint)
    assert any(not torch.equal(before[key], value) for key, value in checkpoint.items())


def test_resume_ends_with_the_same_weights(cfg, tmp_path):
    whole = Runner.from_cfg(cfg)
    whole.train()
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/epoch_1.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert_same(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(budget='macs=5%'), 'no policy meets the budget'),
        (dict(kinds=['tiles']), r"names \['tiles'\]"),
        (dict(criterion='obs'), 'OBS chooses sets'),
        (dict(kinds=['qk'], budget='macs=95%'), 'HSIC scores'),
        (dict(num_images=0), 'num_images must be at least 1'),
    ],
)
def test_bad_arguments_end_the_run_before_it_starts(cfg, arguments, message):
    cfg.custom_hooks[0].update(arguments)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()
