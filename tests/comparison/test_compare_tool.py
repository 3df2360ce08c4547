"""tools/compare.py: rows at equal cost, each in its process, from runs that may be killed."""

import signal
import time
from pathlib import Path

import pytest
from fork_server import run_tool, start_tool
from micro import BUDGET, ROOT, SWIN, command, environment, results, run, write
from mmengine.config import Config
from PIL import Image

from mcf_mm.comparison.rows import methods
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_units
from mcf_mm.weights.checkpoint import read_header


def test_rows_in_one_shot_healed_and_trained(saved):
    options = ['--rows', '^MCF, sequential', 'with tokens', 'SiDT']
    options += ['--heal', 'epochs=1', '--epochs', 2]
    process = run(saved, *BUDGET, *options)
    found = results(saved)
    rows, facts = found['rows'], found['facts']
    assert facts['counts'] == dict(calibration=6, report=4, training=6)
    counted = '6 images to calibrate on, 6 to train on (training set), 4 to report on (test set)'
    assert counted in process.stderr
    assert not found['failed'] and not found['left_out']
    once = {'MCF, sequential', 'closed form with tokens'}
    assert set(rows) == once | {'dense', 'SiDT, searched while training'}
    assert facts['wanted'] == round(0.75 * facts['dense'])
    for name, row in rows.items():
        assert 0 <= row['trained']['top1'] <= 100 and row['trained']['epochs'] == 2
        speed = row['speed']
        assert min(speed['images_per_second'], speed['dense_images_per_second']) > 0
        assert speed['inference_peak_bytes'] > 2**26
        if name in once:
            shot = row['one_shot']
            assert 0.95 * facts['wanted'] < shot['macs'] <= facts['wanted'], name
            assert shot['images'] == 4 and shot['seconds'] > 0 and shot['processor_seconds'] > 0
            assert shot['peak_bytes'] >= shot['before_bytes'] > 2**26
            assert shot['gpu_peak_bytes'] is None
            assert row['healed']['images'] == 5  # one is kept aside
    assert rows['dense']['one_shot']['macs'] == facts['dense']
    assert rows['SiDT, searched while training']['trained']['macs'] < 0.9 * facts['dense']
    folder = saved / 'out' / 'rows' / 'closed_form_with_tokens'
    for name in ('slim', 'healed'):
        slim = Config.fromfile(folder / f'{name}.py')
        assert find_units(build_model(slim)).tokens
        header = read_header(folder / f'{name}.safetensors')
        assert header['method'] == 'closed form with tokens' and header['budget'] == 'macs=75%'
    table = (saved / 'out' / 'table.md').read_text()
    assert table in process.stdout
    lines = [line for line in table.splitlines() if line.startswith('| ')][2:]
    assert {line.split(' | ')[0].removeprefix('| ') for line in lines} == set(rows)
    scores = [float(line.split(' | ')[5]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert 'Calibrated on 6 images of the training set, top-1 on 4 of the test set' in table
    with Image.open(saved / 'out' / 'accuracy.png') as picture:
        assert min(picture.size) > 200


def test_a_killed_run_goes_on_where_it_was(saved):
    options = [*BUDGET, '--rows', 'hidden alone, (random|FIS|act)', '--epochs', 1]
    process = start_tool(command(saved, *options), env=environment(saved))
    end = time.monotonic() + 60
    file = saved / 'out' / 'results.json'
    while not file.exists() or len(results(saved)['rows']) < 2:
        assert process.poll() is None and time.monotonic() < end, process.output()
        time.sleep(0.01)
    children = [int(pid) for pid in _children(process.pid)]
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    for pid in children:  # a row does not outlive the tool that wants it
        while Path(f'/proc/{pid}').exists():
            assert time.monotonic() < end
            time.sleep(0.02)
    before = results(saved)['rows']
    assert f'{file} is there: go on with --resume' in run(saved, *options, status=1).stderr
    run(saved, *options, '--resume')
    after = results(saved)['rows']
    assert list(after) == [
        'dense', 'hidden alone, random', 'hidden alone, activation', 'hidden alone, FIS'
    ]  # fmt: skip
    for name, row in before.items():
        for stage, content in row.items():  # with their seconds: not done again
            assert after[name][stage] == content
    assert all(set(row) == {'one_shot', 'speed', 'trained'} for row in after.values())
    # Nothing is left to do; healing comes as a column of its own.
    run(saved, *options, '--resume')
    assert results(saved)['rows'] == after
    run(saved, *options, '--resume', '--heal', 'epochs=1')
    healed = results(saved)['rows']
    assert {name: 'healed' in row for name, row in healed.items()} == {
        name: name != 'dense' for name in after
    }
    for change, message in (
        (['--budget', 'macs=80%'], "its budget is 'macs=75%', here it is 'macs=80%'"),
        (['--epochs', 2], 'its epochs is 1, here it is 2'),
        (['--cfg-options', 'randomness.seed=3'], 'its options is None, here it is'),
    ):
        stderr = run(saved, *options, '--resume', *change, status=1).stderr
        assert 'is of another comparison' in stderr and message in stderr


def _children(pid: int) -> list[str]:
    return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()


BREAKS = """
import os
import signal
from mcf_mm.pruning.criteria import Activation, Magnitude

def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def broken(*args):
    raise RuntimeError('out of luck')

Activation.scores, Magnitude.scores = killed, broken
"""


def test_a_row_that_crashes_is_named_and_the_others_go_on(apart, tmp_path):
    apart.custom_imports = dict(imports=['breaks'])
    (tmp_path / 'breaks.py').write_text(BREAKS)
    write(apart, tmp_path)
    options = [*BUDGET, '--rows', 'hidden alone, (act|GRAIL|random)']
    process = run(tmp_path, *options, status=1)
    found = results(tmp_path)
    killed, broken = 'hidden alone, activation', 'hidden alone, GRAIL rule (magnitude, ridge)'
    assert f'error: 2 rows failed: {broken}; {killed}' in process.stderr
    assert 'one_shot: its process was ended by SIGKILL' in found['failed'][killed]
    assert 'one_shot: RuntimeError: out of luck (traceback in ' in found['failed'][broken]
    assert 'broken' in Path(found['failed'][broken].rpartition(' in ')[2][:-1]).read_text()
    assert set(found['rows']) == {'dense', 'hidden alone, random'}
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert f'- Failed: {killed}: one_shot: its process' in table
    (tmp_path / 'breaks.py').write_text('')  # mended
    run(tmp_path, *options, '--resume')
    assert set(results(tmp_path)['rows']) == {'dense', 'hidden alone, random', killed, broken}
    assert not results(tmp_path)['failed']


def test_what_a_network_cannot_have_is_left_out_with_the_reason(apart, tmp_path):
    apart.model = dict(
        type='ImageClassifier', backbone=SWIN, neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=32, num_classes=2),
    )  # fmt: skip
    apart.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=32))
    write(apart, tmp_path)
    budget = ['--budget', 'macs=85%', '--rows']
    stderr = run(tmp_path, *budget, 'SiDT', status=1).stderr
    assert 'SiDT searches while it trains: it needs --epochs 2 or more' in stderr
    stderr = run(tmp_path, *budget, '^MCF, none', 'tokens', status=1).stderr
    assert "error: no row of --rows 'tokens' can be had: kinds names ['tokens']" in stderr
    process = run(tmp_path, *budget, 'tokens|^MCF, none|searched policy')
    found = results(tmp_path)
    assert set(found['rows']) == {'dense', 'MCF, none'}
    assert set(found['left_out']) == {'closed form with tokens', 'searched policy, OBS'}
    for name, reason in found['left_out'].items():
        assert f'left out: {name}: {reason}' in process.stderr
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert '- Left out: searched policy, OBS: a search was not asked for (--search TRIALS)' in table
    assert "- Left out: closed form with tokens: kinds names ['tokens'], the network has" in table


@pytest.mark.parametrize(
    'options, message',
    [
        ([*BUDGET, '--rows', 'MFC'], "--rows 'MFC' names no row; there are: dense; MCF, none;"),
        ([*BUDGET, '--rows', '('], "--rows '(' is no regular expression"),
        (['--budget', 'macs=5%'], 'no row of all can be had: no policy meets the budget of'),
        (['--budget', 'macs=100%'], 'the network meets the budget macs=100% as it is'),
        (['--budget', 'speed=2'], "budget must be 'params=N' or 'macs=N'"),
        (['--budget', 'latency=70%'], '--budget must be of params or macs'),
        ([*BUDGET, '--heal', 'epochs'], '--heal must be minutes=N or epochs=N'),
        ([*BUDGET, '--epochs', 0], 'epochs must be at least 1, got 0'),
        ([*BUDGET, '--rounds', 0], 'rounds must be at least 1, got 0'),
        ([*BUDGET, '--seed', -1], 'seed must be a whole number from 0'),
        (
            [*BUDGET, '--cfg-options', 'test_dataloader.dataset.ann_file='],
            '6 of the 10 images of test_dataloader are among those to calibrate on, the first ',
        ),
        (
            [*BUDGET, '--num-images', 1, '--epochs', 1, '--cfg-options',
             'test_dataloader.dataset.ann_file=train.txt'],
            'of the 6 images of test_dataloader are among those to',
        ),
    ],
)  # fmt: skip
def test_bad_arguments(saved, options, message):
    stderr = run(saved, *options, status=1).stderr
    assert message in stderr, stderr
    assert not (saved / 'out' / 'results.json').exists()


def test_files_that_are_not_there(saved):
    (saved / 'dense.pth').unlink()
    assert 'no checkpoint ' in run(saved, *BUDGET, status=1).stderr
    (saved / 'micro.py').unlink()
    assert 'no config file ' in run(saved, *BUDGET, status=1).stderr
    tool = ROOT / 'tools' / 'compare.py'
    process = run_tool([tool])
    assert process.returncode == 2 and 'config, checkpoint, budget, out: missing' in process.stderr
    assert run_tool([tool, '--list']).stdout.splitlines() == list(methods())


def test_a_searched_policy(saved):
    pytest.importorskip('optuna', reason='the extra search is not installed')
    run(saved, *BUDGET, '--rows', 'searched policy', '--search', 2)
    shot = results(saved)['rows']['searched policy, OBS']['one_shot']
    assert shot['trials'] == 2 and shot['macs'] <= results(saved)['facts']['wanted']
