"""The general hook inside real Runners: any kind, any criterion, one cut."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recording import find_hook

from mcf_mm.engine import PruningHook
from mcf_mm.pruning import find_units
from mcf_mm.weights.checkpoint import read_header

RATIOS = dict(heads=0.5, qk=0.25, v=0.5, hidden=0.4)


@pytest.fixture
def cfg(cfg) -> Config:
    """Cuts all kinds at the start of epoch 1 of 3."""
    cfg.custom_hooks = [dict(type='mcf_mm.PruningHook', ratios=RATIOS, epoch=1, num_images=10)]
    cfg.train_cfg.max_epochs = 3
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    return cfg


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize('criterion', ['fisher', 'activation', 'magnitude', 'random'])
def test_all_kinds_shrink_and_the_config_builds_the_network(cfg, criterion, tmp_path):
    cfg.custom_hooks[0].criterion = criterion
    runner = Runner.from_cfg(cfg)
    runner.train()
    sizes = find_units(runner.model).sizes
    assert sizes['backbone.layers.0.attn'] == dict(heads=1, qk=6, v=4)
    assert sizes['backbone.layers.2.ffn'] == dict(inputs=16, hidden=24)
    optimizer = runner.optim_wrapper.optimizer
    for parameter in runner.model.parameters():
        assert optimizer.state[parameter]['exp_avg'].shape == parameter.shape
    header = read_header(Path(cfg.work_dir) / 'slim.safetensors')
    assert header['criterion'] == criterion and header['ratios'] == RATIOS
    assert header['sizes'] == sizes

    slim = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    assert slim.model.backbone.sizes == dict(
        heads=[1] * 3, qk=[6] * 3, v=[4] * 3, inputs=[16] * 3, hidden=[24] * 3
    )
    slim.work_dir, slim.experiment_name = str(tmp_path / 'test'), 'slim' + tmp_path.name
    again = Runner.from_cfg(slim)
    assert again.test() == runner.val()
    assert_same(again.model.state_dict(), runner.model.state_dict())


def test_hsic_cuts_heads_and_hidden_units(cfg):
    ratios = dict(heads=0.25, hidden=0.4)
    hook = dict(type='mcf_mm.PruningHook', criterion=dict(type='hsic'), num_images=10)
    cfg.custom_hooks = [dict(hook, ratios=ratios, epoch=1)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    sizes = find_units(runner.model).sizes
    assert sizes['backbone.layers.0.attn'] == dict(heads=1, qk=8, v=8)
    assert sizes['backbone.layers.2.ffn'] == dict(inputs=16, hidden=24)
    header = read_header(Path(cfg.work_dir) / 'slim.safetensors')
    assert header['criterion'] == dict(type='hsic') and header['sizes'] == sizes


@pytest.mark.parametrize('epoch', [1, 2])
def test_resume_ends_with_the_same_weights(cfg, epoch, tmp_path):
    whole = Runner.from_cfg(cfg)
    whole.train()
    cfg.load_from, cfg.resume = f'{cfg.work_dir}/epoch_{epoch}.pth', True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert_same(whole.model.state_dict(), resumed.model.state_dict())


def test_the_trial_before_training_changes_nothing(cfg):
    class Look(Hook):
        priority = 'VERY_HIGH'

        def before_train(self, runner):
            torch.manual_seed(7)
            self.before = {k: v.clone() for k, v in runner.model.state_dict().items()}

    class LookAgain(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner):
            self.drawn = torch.rand(3)
            self.after = {k: v.clone() for k, v in runner.model.state_dict().items()}
            self.states = len(runner.optim_wrapper.optimizer.state)

    runner = Runner.from_cfg(cfg)
    first, second = Look(), LookAgain()
    runner.register_hook(first)
    runner.register_hook(second)
    runner.train()
    assert_same(first.before, second.after)
    assert second.states == 0
    torch.manual_seed(7)
    assert torch.equal(second.drawn, torch.rand(3))
    assert find_hook(runner, PruningHook).is_small


def test_sizes_from_a_file(cfg, tmp_path):
    path = tmp_path / 'policy.json'
    path.write_text('{"sizes": {"backbone.layers.1.ffn": {"hidden": 17, "inputs": 11}}}')
    cfg.custom_hooks[0].update(ratios=None, sizes=str(path))
    runner = Runner.from_cfg(cfg)
    runner.train()
    sizes = find_units(runner.model).sizes
    assert sizes['backbone.layers.1.ffn'] == dict(inputs=11, hidden=17)
    assert sizes['backbone.layers.0.ffn'] == dict(inputs=16, hidden=40)
    again = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    assert again.model.backbone.sizes.hidden == [40, 17, 40]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(epoch=3), 'max_epochs is 3: there is no epoch 3'),
        (dict(epoch=-1), 'epoch must be at least 0, got -1'),
        (dict(criterion='best'), "criterion must be one of .* got 'best'"),
        (dict(criterion='mcf'), 'scores .* no .*heads'),
        (dict(criterion='hsic'), "HSIC scores .* no .*'qk', 'v'"),
        (dict(ratios=dict(tiles=0.5)), r"ratios names \['tiles'\]"),
        (dict(ratios={'backbone.layers.9.ffn': dict(hidden=0.5)}), 'layers.9.ffn'),
        (dict(ratios=dict(hidden=1.5)), r'hidden of .* must be a number in \[0, 1\), got 1.5'),
        (dict(ratios=None, sizes='nowhere.json'), 'no policy file nowhere.json'),
        (dict(sizes={'backbone.layers.0.ffn': dict(hidden=99)}), 'not both'),
    ],
)
def test_bad_arguments_end_the_run_before_it_starts(cfg, arguments, message):
    cfg.custom_hooks = [{**cfg.custom_hooks[0], **arguments}]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Runner.from_cfg(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))


def test_a_network_that_is_pruned_already_is_refused(cfg):
    cfg.model.backbone.sizes = dict(hidden=30)
    with pytest.raises(ValueError, match=r'layers\.0\.ffn is pruned already, to .*30'):
        Runner.from_cfg(cfg).train()


def test_an_optimizer_whose_state_cannot_be_cut_is_refused_before_training(cfg):
    cfg.optim_wrapper = dict(optimizer=dict(type='LBFGS', lr=0.1))
    with pytest.raises(Exception, match='LBFGS|closure'):
        Runner.from_cfg(cfg).train()
