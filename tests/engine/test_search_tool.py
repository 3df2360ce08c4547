"""tools/search.py: a policy on the budget for tools/prune.py, from runs that may be killed."""

import json
import signal
import time

import pytest
import torch
from budgets import SHAPE, widened
from fork_server import run_tool, start_tool
from mmengine.config import Config
from recording import ROOT
from test_budget_tool import saved

from mcf_mm.engine.networks import model_costs
from mcf_mm.engine.search_images import labels_of, loaded, shared_images
from mcf_mm.pruning import find_units
from mcf_mm.pruning.policy import check_sizes, read_policy
from mcf_mm.weights.checkpoint import read_header

pytest.importorskip('optuna', reason='the extra search is not installed')

BUDGET = ['--budget', 'macs=75%']


@pytest.fixture
def dense(cfg, tmp_path) -> torch.nn.Module:
    """The dense network; ``dense.pth`` and ``micro.py`` are its weights and config."""
    widened(cfg).custom_hooks = []
    return saved(cfg, tmp_path)


def command(folder, out: str, *options) -> list:
    files = [folder / 'micro.py', folder / 'dense.pth', '--out', folder / out]
    return [ROOT / 'tools' / 'search.py', *files, *options]


def done(folder, out: str, *options) -> str:
    process = run_tool(command(folder, out, *options))
    assert process.returncode == 0, process.stderr + process.stdout
    return process.stdout


def trials(folder, out: str) -> list[dict]:
    return json.loads((folder / out / 'trials.json').read_text())


def test_a_policy_on_the_budget_that_prune_takes(dense, tmp_path):
    options = [*BUDGET, '--trials', 4, '--sampler', 'random', '--objective', 'divergence']
    out = done(tmp_path, 'search', *options)
    assert '5 of the 10 training images are for calibration, the next 5 of the same' in out
    assert '5 images to score on are in memory, 0.0 MiB' in out
    folder = tmp_path / 'search'
    assert {file.name for file in folder.iterdir()} == {
        'policy.json', 'trials.json', 'study.db', 'history.png', 'importances.png', 'slices.png',
        'pareto.png',
    }  # fmt: skip
    rows, costs = trials(tmp_path, 'search'), model_costs(dense, SHAPE)
    wanted = round(0.75 * costs.of({})['macs'])
    assert [row['trial'] for row in rows] == [0, 1, 2, 3]
    assert all(0.97 * wanted < row['macs'] <= wanted for row in rows)
    best = max(rows, key=lambda row: row['score'])
    policy, sizes = (
        json.loads((folder / 'policy.json').read_text()),
        read_policy(folder / 'policy.json'),
    )
    check_sizes(find_units(dense), sizes)
    assert policy['trial'] == best['trial'] and policy['score'] == best['score']
    assert policy['cost'] == costs.of(sizes) and policy['cost']['macs'] == best['macs']
    facts = policy['search']
    assert (facts['compensation'], facts['num_images'], facts['seed']) == ('least_squares', 5, 0)
    assert facts['score'] == 'cut' and facts['origin'] == str(tmp_path / 'dense.pth')
    assert f'best divergence of 4 trials: {best["score"]:.4g} (trial {best["trial"]})' in out
    assert f'{best["macs"]:,} of {wanted:,} macs' in out
    # A further trial; the images on which it calibrates and scores are the same.
    message = run_tool(command(tmp_path, 'search', *options))
    assert message.returncode == 1 and "has a study 'mcf_mm' already" in message.stderr
    out = done(tmp_path, 'search', *BUDGET, '--trials', 5, *options[4:], '--resume')
    assert '4 trials are in sqlite' in out and trials(tmp_path, 'search')[:4] == rows
    # The command that it tells.
    told = next(line for line in out.splitlines() if line.startswith('next: python '))
    pruned = run_tool(told.removeprefix('next: python ').split())
    assert pruned.returncode == 0, pruned.stderr
    header = read_header(folder / 'slim' / 'slim.safetensors')
    for name, own in read_policy(folder / 'policy.json').items():
        assert {kind: header['sizes'][name][kind] for kind in own} == own
    assert (header['num_images'], header['compensation']) == (5, 'least_squares')


def test_a_killed_run_goes_on_to_the_same_result(dense, tmp_path):
    options = [*BUDGET, '--criterion', 'fisher', '--trials', 12, '--dims', 'heads,hidden,v,qk']
    done(tmp_path, 'whole', *options)
    process = start_tool(command(tmp_path, 'killed', *options))
    policy, end = tmp_path / 'killed' / 'policy.json', time.monotonic() + 50
    while not policy.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    out = done(tmp_path, 'killed', *options, '--resume')
    assert 'trials are in sqlite' in out
    assert trials(tmp_path, 'killed') == trials(tmp_path, 'whole')
    assert read_policy(policy) == read_policy(tmp_path / 'whole' / 'policy.json')
    # Another budget and other weights are another search.
    for change, message in (
        (['--budget', 'macs=80%'], "its budget is 'macs=75%', here it is 'macs=80%'"),
        (['--score', 'masked'], "its score is 'cut', here it is 'masked'"),
        (['--num-images', 4], 'its num_images is 5, here it is 4'),
    ):
        again = run_tool(command(tmp_path, 'killed', *options, '--resume', *change))
        assert again.returncode == 1 and message in again.stderr, again.stderr
    torch.save({k: 2 * v for k, v in dense.state_dict().items()}, tmp_path / 'dense.pth')
    again = run_tool(command(tmp_path, 'killed', *options, '--resume'))
    assert again.returncode == 1 and 'is of another search: its network is' in again.stderr


def test_gates_alone(dense, tmp_path):
    options = [*BUDGET, '--trials', 2, '--score', 'masked', '--max-ratio', 'hidden=0.7, heads=0.4']
    done(tmp_path, 'search', *options, '--num-images', 3, '--search-images', 6)
    policy = json.loads((tmp_path / 'search' / 'policy.json').read_text())
    facts = policy['search']
    assert round(policy['score'] * 6, 6) % 100 == 0 and facts['compensation'] == 'none'
    assert facts['max_ratio'] == dict(heads=0.4, hidden=0.7, tokens=0.5)
    assert (facts['num_images'], facts['search_images']) == (3, 6)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--budget', 'macs=20%'], 'is the least when at most heads=0.5, hidden=0.5, tokens=0.5 '),
        (['--budget', 'macs=100%'], 'the network meets the budget macs=100% as it is'),
        (['--budget', 'speed=2'], "budget must be 'params=N'"),
        (['--budget', 'latency=70%'], 'a budget of latency needs a file of measured times'),
        ([*BUDGET, '--dims', 'heads,tokns'], "dims names ['tokns'], the network has ['"),
        ([*BUDGET, '--max-ratio', 'hidden'], '--max-ratio must be KIND=RATIO,... with each kind'),
        ([*BUDGET, '--max-ratio', 'qk=0.5'], "max_ratio names 'qk', the search is over ['heads'"),
        ([*BUDGET, '--trials', '0'], 'trials must be at least 1, got 0'),
        ([*BUDGET, '--seed', '-1'], 'seed must be a whole number from 0'),
        ([*BUDGET, '--criterion', 'mcf'], "MCF scores ['inputs', 'hidden'] and no ['heads']"),
        ([*BUDGET, '--patience', 'nan'], 'patience must be seconds, 0 or more, got nan'),
        (
            [*BUDGET, '--score', 'masked', '--compensation', 'mean'],
            "score='masked' has no compensation, got 'mean'",
        ),
        ([*BUDGET, '--storage', 'there'], 'storage must be the URL of a database'),
    ],
)
def test_what_cannot_be_searched_is_refused_before_images_are_read(
    dense, tmp_path, photos, options, message
):
    for photo in photos.rglob('*.png'):
        photo.write_bytes(b'')
    process = run_tool(command(tmp_path, 'refused', *options))
    assert process.returncode == 1 and message in process.stderr, process.stderr
    assert 'Traceback' not in process.stderr


def test_images_are_shared_out():
    assert shared_images(100_000, None, None) == (1024, 500)
    assert shared_images(1300, None, None) == (800, 500)
    assert shared_images(500, None, None) == (250, 250)
    assert shared_images(500, 400, None) == (400, 100)
    assert shared_images(500, None, 450) == (50, 450)
    assert shared_images(9, 3, 6) == (3, 6)
    for number, asked in ((9, (4, 6)), (9, (9, None)), (9, (None, 9)), (1, (None, None))):
        with pytest.raises(ValueError, match=f'the training set has {number} images: '):
            shared_images(number, *asked)
    with pytest.raises(ValueError, match='search_images must be at least 1, got 0'):
        shared_images(9, 3, 0)


def test_images_to_score_on_are_the_next_of_the_same_order(cfg: Config, capsys, monkeypatch):
    from mcf_mm.engine.calibration_data import calibration_loader

    loaders = [calibration_loader(cfg, 10, 3), calibration_loader(cfg, 6, 3, start=4)]
    first, second = ([*loader.dataset.indices] for loader in loaders)
    assert first[4:] == second and sorted(first) == list(range(10))
    labels = labels_of(loaders[1].dataset)
    batches = loaded(loaders[1])
    assert [int(s.gt_label) for b in batches for s in b['data_samples']] == labels.tolist()
    assert isinstance(batches, list)
    monkeypatch.setattr('mcf_mm.engine.search_images.MEMORY', 1e-12)
    assert loaded(loaders[1]) is loaders[1]
    assert 'images to score on are read anew for each trial' in capsys.readouterr().out


def test_a_detector_has_no_class_scores(detection_cfg, tmp_path):
    from mcf_mm.engine.search import search_checkpoint

    detection_cfg.model = dict(
        type='RetinaNet',
        backbone=dict(
            type='mcf_mm.SlimVisionTransformer', img_size=96, patch_size=16, out_type='featmap',
            arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
        ),
        neck=dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=16, out_channels=16),
        bbox_head=dict(
            type='RetinaHead', num_classes=2, in_channels=16, feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]
            ),
        ),
    )  # fmt: skip
    with pytest.raises(ValueError, match='RetinaNet has no classifier'):
        search_checkpoint(detection_cfg, 'none.pth', tmp_path / 'out', 'macs=70%')
