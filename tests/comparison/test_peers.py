"""torch-pruning beside the methods here: at the same budget, or left out by name."""

import copy

import pytest
import torch
from micro import BUDGET, results, run

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.comparison import peers
from mcf_mm.comparison.bench import Bench
from mcf_mm.engine.config import load_config
from mcf_mm.pruning import find_units

needs_peers = pytest.mark.skipif(
    not peers.is_installed(), reason='torch-pruning is not installed (the extra peers)'
)


@pytest.fixture
def bench(saved) -> Bench:
    cfg = load_config(str(saved / 'micro.py'), str(saved / 'work'))
    return Bench(cfg, str(saved / 'dense.pth'), 6, told=lambda *_: None)


@pytest.mark.skipif(peers.is_installed(), reason='torch-pruning is installed')
def test_without_torch_pruning_its_rows_are_left_out(saved):
    stderr = run(saved, *BUDGET, '--rows', 'torch-pruning', status=1).stderr
    assert "no row of --rows 'torch-pruning' can be had: torch-pruning is not installed" in stderr
    assert "pip install -e '.[peers]'" in stderr
    process = run(saved, *BUDGET, '--rows', 'torch-pruning|random')
    assert len(results(saved)['left_out']) == 6
    assert 'left out: torch-pruning, FFN, Taylor: torch-pruning is not installed' in process.stderr


@needs_peers
@pytest.mark.parametrize('everything', [False, True])
@pytest.mark.parametrize('importance', peers.IMPORTANCES)
def test_the_budget_is_met(bench, importance, everything):
    model = copy.deepcopy(bench.dense)
    ratio = peers.ratio_for(model, 'macs=75%', bench.costs, bench.shape, importance, everything)
    for key, value in bench.dense.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    peers.torch_pruning(model, bench.loader(0), importance, bench.shape, ratio, everything)
    wanted = round(0.75 * bench.costs.of({})['macs'])
    assert 0.93 * wanted < count_complexity(model, bench.shape).macs <= wanted
    assert (model.backbone.layers[0].ln1.weight.numel() < 32) == everything
    assert 0 <= bench.measured(model)['top1'] <= 100
    hidden = [unit.sizes['hidden'] for unit in find_units(model).ffns]
    assert max(hidden) < 64


@needs_peers
def test_rows_are_healed_and_trained(saved):
    rows = ['--rows', 'torch-pruning, FFN, Taylor', 'everything, magnitude']
    run(saved, *BUDGET, *rows, '--epochs', 1, '--heal', 'epochs=1')
    found = results(saved)['rows']
    assert set(found['torch-pruning, FFN, Taylor']) == {
        'ratio', 'one_shot', 'speed', 'healed', 'trained'
    }  # fmt: skip
    everything = found['torch-pruning, everything, magnitude']
    assert set(everything) == {'ratio', 'one_shot', 'speed', 'trained'}
    assert 0 < everything['ratio']['ratio'] < 1
    assert everything['one_shot']['macs'] <= results(saved)['facts']['wanted']


def test_why_not_everything(bench):
    assert peers.why_not_everything(bench.dense) is None
    for unit in find_units(bench.dense).attentions:
        unit.module.head_dims = None
        del unit.module.head_dims
    reason = peers.why_not_everything(bench.dense)
    assert "needs attentions as mmpretrain's MultiheadAttention, the network has " in reason
