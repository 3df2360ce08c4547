"""tools/prune.py to a budget: the promised cost, and files that spare work the next time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from budgets import KINDS, SHAPE, assert_exact, built, error, wanted_of, widened
from fork_server import run_tool
from mmengine.config import Config
from recording import ROOT
from test_healing_runs import assert_same, with_large_weights

from mcf_mm.engine.calibration_data import calibration_loader
from mcf_mm.engine.networks import build_model, model_costs
from mcf_mm.engine.prune import prune_checkpoint
from mcf_mm.pruning import find_units, prune
from mcf_mm.pruning.criteria import OBS
from mcf_mm.search import read_latency
from mcf_mm.weights.checkpoint import load_weights, read_header, read_state_dict
from mcf_mm.weights.statistics import read_statistics


@pytest.fixture
def cfg(cfg) -> Config:
    widened(cfg).custom_hooks = []
    return cfg


@pytest.fixture
def dense(cfg, tmp_path) -> torch.nn.Module:
    """The dense network; ``dense.pth`` and ``micro.py`` are its weights and config."""
    return saved(cfg, tmp_path)


def saved(cfg: Config, folder: Path, seed: int = 0) -> torch.nn.Module:
    cfg.dump(folder / 'micro.py')
    torch.manual_seed(seed)
    model = with_large_weights(build_model(cfg))
    torch.save(model.state_dict(), folder / 'dense.pth')
    return model


def tool(folder: Path, out: str, *options):
    """Runs tools/prune.py on the files of ``saved``."""
    files = [folder / 'micro.py', folder / 'dense.pth', '--out', folder / out]
    return run_tool([ROOT / 'tools' / 'prune.py', *files, '--num-images', 10, *options])


def done(folder: Path, out: str, *options) -> str:
    """What it printed, where it went well."""
    process = tool(folder, out, *options)
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused(folder: Path, *options) -> str:
    """What it said, where nothing was written."""
    process = tool(folder, 'refused', *options)
    assert process.returncode == 1, process.stdout
    assert 'Traceback' not in process.stderr, process.stderr
    assert not (folder / 'refused').exists() or not list((folder / 'refused').iterdir())
    return process.stderr


def weights(folder: Path) -> dict:
    return read_state_dict(str(folder / 'slim.safetensors'))


@pytest.mark.parametrize(
    'budget, kinds',
    [('params=72%', None), ('macs=65%', None), ('macs=80%', ('heads', 'v', 'inputs'))],
)
def test_the_cost_is_the_budget_to_the_last_element(dense, tmp_path, budget, kinds):
    dims = ['--dims', ', '.join(kinds)] if kinds else []
    out = done(tmp_path, 'slim', '--budget', budget, '--method', 'obs', *dims)
    small = built(tmp_path / 'slim')
    assert_exact(dense, small, budget, kinds or KINDS)
    header = read_header(tmp_path / 'slim' / 'slim.safetensors')
    assert header['budget'] == budget and header['criterion'] == dict(type='obs')
    assert header['compensation'] == 'least_squares' and header['latency'] is None
    assert header['sizes'] == find_units(small).sizes
    cost = model_costs(dense, SHAPE).of(header['sizes'])
    assert f'-> {cost["params"] / 1e6:.3f} M, MACs' in out
    # Each layer has sizes of its own.
    own = [sizes for name, sizes in header['sizes'].items() if name.endswith('attn')]
    assert any(sizes != own[0] for sizes in own)


def test_the_result_goes_into_the_other_tools_as_it_is(dense, tmp_path):
    done(tmp_path, 'slim', '--budget', 'params=20000')
    slim = tmp_path / 'slim'
    assert sum(p.numel() for p in built(slim).parameters()) <= 20000
    tested = run_tool([ROOT / 'tools' / 'test.py', slim / 'slim.py', slim / 'slim.safetensors'])
    assert tested.returncode == 0, tested.stderr
    assert 'accuracy/top1' in json.loads(tested.stdout.splitlines()[-1])
    options = [slim / 'slim.py', '--json']
    counted = run_tool([ROOT / 'tools' / 'complexity.py', *options])
    assert counted.returncode == 0, counted.stderr
    cost = model_costs(dense, SHAPE).of(read_header(slim / 'slim.safetensors')['sizes'])
    found = json.loads(counted.stdout)
    assert {key: found[key] for key in cost} == cost


@pytest.mark.parametrize('compensation', ['least_squares', 'mean', 'none'])
def test_a_further_budget_from_the_curves_reads_no_image(
    cfg, dense, tmp_path, photos, compensation
):
    curves = tmp_path / 'kept' / 'curves.json'
    more = ['--curves', curves, '--compensation', compensation]
    out = done(tmp_path, 'first', '--budget', 'params=72%', *more)
    assert f'wrote {curves} and {curves.with_suffix(".safetensors")}' in out
    assert sorted(file.name for file in curves.parent.iterdir()) == [
        'curves.json', 'curves.safetensors'
    ]  # fmt: skip
    facts = json.loads(curves.read_text())['facts']
    assert facts['curves'] == 'measured' and facts['num_images'] == 10
    before = curves.read_bytes()
    direct = ['--budget', 'macs=65%', '--compensation', compensation]
    done(tmp_path, 'direct', *direct)
    for photo in photos.rglob('*.png'):
        photo.write_bytes(b'')
    assert 'the image file is empty' in tool(tmp_path, 'refused', *direct).stderr
    other = ['--num-images', '4', '--seed', '3']
    out = done(tmp_path, 'second', '--budget', 'macs=65%', *more, *other)
    # The images that were looked at, not those that are asked for here.
    header = read_header(tmp_path / 'second' / 'slim.safetensors')
    assert (header['num_images'], header['seed'], header['curves']) == (10, 0, curves.name)
    assert f'cost curves and moments from {curves}: no image is read' in out
    assert curves.read_bytes() == before
    assert_exact(dense, built(tmp_path / 'second'), 'macs=65%')
    assert_same(weights(tmp_path / 'second'), weights(tmp_path / 'direct'))
    # In Python, without the tool.
    model = build_model(cfg)
    load_weights(model, str(tmp_path / 'dense.pth'))
    known, seen = read_statistics(curves, model)
    costs = model_costs(model, SHAPE)
    arguments = dict(curves=known, seen=seen, costs=costs, compensation=compensation)
    prune(model, calibration_loader(cfg, 10), OBS(), budget='macs=65%', **arguments)
    assert_same(weights(tmp_path / 'second'), model.state_dict())


def test_curves_that_do_not_fit_are_refused_by_name(cfg, dense, tmp_path):
    budget, curves = ['--budget', 'params=80%'], tmp_path / 'curves.json'
    done(tmp_path, 'first', *budget, '--dims', 'hidden,v', '--curves', curves)
    message = refused(tmp_path, *budget, '--curves', curves)
    assert "no cost curves of ['heads', 'inputs', 'qk'], only of ['hidden', 'v']" in message
    options = ['--dims', 'hidden,v', '--curves', curves, '--allocation', 'predicted']
    message = refused(tmp_path, *budget, *options)
    message_of = f'{curves} was made with {{}}, and {{}} is asked for: name another file'
    assert message_of.format("allocation='measured'", "'predicted'") in message
    with pytest.raises(ValueError, match="metric='fisher', and 'plain' is asked for"):
        prune_checkpoint(
            cfg, str(tmp_path / 'dense.pth'), tmp_path / 'plain', num_images=10,
            criterion=dict(type='obs', metric='plain'), budget='params=80%',
            kinds=['hidden', 'v'], curves=curves,
        )  # fmt: skip
    for options, expected in (
        (['--curves', curves], '--curves are for a --budget: give one'),
        ([*budget, '--curves', tmp_path / 'curves.txt'], 'curves must be a .json file, got'),
        (
            [*budget, '--criterion', 'fisher', '--curves', curves],
            "curves are of the criterion 'obs', got Fisher",
        ),
    ):
        assert expected in refused(tmp_path, *options)
    saved(cfg, tmp_path, seed=1)
    message = refused(tmp_path, *budget, '--dims', 'hidden', '--curves', curves)
    assert f'{curves} is of other weights' in message
    curves.with_suffix('.safetensors').unlink()
    assert 'curves.safetensors' in refused(tmp_path, *budget, '--curves', curves)


@pytest.fixture
def timed(cfg, tmp_path) -> torch.nn.Module:
    """A network large enough that its time depends on its sizes."""
    arch = dict(embed_dims=128, num_layers=2, num_heads=4, feedforward_channels=1024)
    cfg.model.backbone.update(arch=arch, img_size=64)
    cfg.model.head.in_channels = 128
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline.insert(1, dict(type='Resize', scale=64))
    return saved(cfg, tmp_path)


def test_a_budget_of_latency_is_met_by_times_in_a_file(cfg, timed, tmp_path):
    path, budget = tmp_path / 'times.json', ['--budget', 'latency=80%']
    batch = ['--latency-batch', 2]
    out = done(tmp_path, 'first', *budget, '--latency', path, *batch)
    assert f'wrote {path}' in out
    latency = read_latency(path, device=None)
    latency.check(find_units(timed))
    assert latency.facts['shape'] == [64, 64] and latency.facts['batch'] == 2
    header = read_header(tmp_path / 'first' / 'slim.safetensors')
    assert header['latency'] == latency.facts and header['budget'] == 'latency=80%'
    assert find_units(built(tmp_path / 'first')).sizes == header['sizes']
    assert latency.of(header['sizes']) <= 0.8 * latency.dense
    content = path.read_bytes()
    out = done(tmp_path, 'second', *budget, '--latency', path, *batch)
    assert f'times from {path}: ' in out
    assert f'wrote {path}' not in out and path.read_bytes() == content
    assert_same(weights(tmp_path / 'first'), weights(tmp_path / 'second'))

    message = refused(tmp_path, *budget, '--latency', path)
    assert f"{path} has times of {{'shape': [64, 64], 'batch': 2}}, and" in message
    size = ['--cfg-options', 'model.backbone.img_size=48']
    size += [f'{part}_dataloader.dataset.pipeline.1.scale=48' for part in ('val', 'test')]
    assert "'shape': [48, 48], 'batch': 2} are" in refused(
        tmp_path, *budget, '--latency', path, *batch, *size
    )
    message = refused(tmp_path, '--budget', 'macs=80%', '--latency', path, *batch)
    assert f'latency={path} is for a budget of latency, got budget=macs=80%' in message
    assert 'is for a budget of latency' in refused(tmp_path, '--latency', path)
    message = refused(tmp_path, '--budget', 'macs=80%', *batch)
    assert 'latency_batch=2 is for a budget of latency, got budget=macs=80%' in message
    cfg.model.backbone.arch.feedforward_channels = 512
    saved(cfg, tmp_path)
    message = refused(tmp_path, *budget, '--latency', path, *batch)
    assert f'{path} is of another network: backbone.layers.0.ffn has' in message
    path.write_text('{}')
    assert 'has no measured times' in refused(tmp_path, *budget, '--latency', path, *batch)


@pytest.mark.parametrize(
    'options',
    [['--budget', 'params=72%'], ['--criterion', 'mcf', '--ratio', '0.4']],
    ids=['obs', 'mcf'],
)
def test_layers_solved_one_after_the_other_are_closer_to_dense(cfg, dense, tmp_path, options):
    errors = []
    for compensation in ('none', 'sequential'):
        done(tmp_path, compensation, *options, '--compensation', compensation)
        small = built(tmp_path / compensation)
        header = read_header(tmp_path / compensation / 'slim.safetensors')
        assert header['compensation'] == compensation
        errors.append(error(cfg, small, dense))
    assert 0 < errors[1] < errors[0]
    assert wanted_of(dense, 'params=100%') > sum(p.numel() for p in small.parameters())


def test_sequential_with_curves_needs_the_images(dense, tmp_path, photos):
    more = ['--curves', tmp_path / 'curves.json', '--compensation', 'sequential']
    done(tmp_path, 'first', '--budget', 'params=72%', *more)
    done(tmp_path, 'direct', '--budget', 'macs=65%', *more[2:])
    done(tmp_path, 'second', '--budget', 'macs=65%', *more)
    assert_same(weights(tmp_path / 'second'), weights(tmp_path / 'direct'))
    shutil.rmtree(photos)
    assert tool(tmp_path, 'third', '--budget', 'macs=65%', *more).returncode == 1
