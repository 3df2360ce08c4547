"""The command lines, in processes of their own: prune, evaluate, train on, and what they refuse."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config

from mcf_mm.engine.networks import build_model
from mcf_mm.weights.checkpoint import read_header

ROOT = Path(__file__).resolve().parents[2]


def run(tool: str, *arguments, bare: bool = False) -> subprocess.CompletedProcess:
    return run_tool([ROOT / 'tools' / tool, *arguments], bare=bare)


@pytest.fixture
def config(cfg, tmp_path) -> Path:
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'micro.py')
    return tmp_path / 'micro.py'


def test_train_prune_and_test(config, tmp_path):
    """Each tool once in a new interpreter, as a user starts it."""
    done = run('train.py', config, '--work-dir', tmp_path / 'dense', bare=True)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / 'dense' / 'epoch_1.pth'
    arguments = ['--ratio', 0.4, '--out', tmp_path / 'slim']
    done = run('prune.py', config, checkpoint, *arguments, bare=True)
    assert done.returncode == 0, done.stderr
    assert 'parameters 0.011 M -> 0.009 M' in done.stdout
    slim = tmp_path / 'slim'
    names = ['report', 'slim.md', 'slim.py', 'slim.safetensors']
    assert sorted(file.name for file in slim.iterdir()) == names
    assert (slim / 'report' / 'importance_backbone.layers.0.ffn.png').is_file()
    # For programs that know nothing of mcf_mm.
    assert read_header(slim / 'slim.safetensors')['dataset_meta'] == dict(classes=['cat', 'dog'])
    assert Config.fromfile(slim / 'slim.py').custom_imports.imports == ['mcf_mm.registry']
    done = run('test.py', slim / 'slim.py', slim / 'slim.safetensors', bare=True)
    assert done.returncode == 0, done.stderr
    assert 'accuracy/top1' in json.loads(done.stdout.splitlines()[-1])
    # Recovery: the slim config trains on as it stands.
    done = run('train.py', slim / 'slim.py', '--work-dir', tmp_path / 'recovered')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'recovered' / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        ('train.py', ['nowhere.py'], 'no config file nowhere.py'),
        ('test.py', ['nowhere.py', 'x.pth'], 'no config file nowhere.py'),
        (
            'prune.py',
            ['CONFIG', 'x.pth', '--out', 'o', '--ratio', '1'],
            'must be a number in [0, 1), got 1',
        ),
        *(
            ('prune.py', ['CONFIG', 'DENSE', '--out', 'o', *options], message)
            for options, message in (
                (['--num-images', '0'], 'num_images must be at least 1, got 0'),
                (['--num-images', '-1'], 'num_images must be at least 1, got -1'),
                (['--num-images', 'nan'], "argument --num-images: invalid int value: 'nan'"),
                (['--multiple', '0'], 'multiple must be at least 1, got 0'),
                (['--seed', '-1'], 'seed must be a whole number from 0 to 2**32 - 1, got -1'),
                (['--scale', 'nan'], 'scale must be positive, got nan'),
                (['--guide', 'nan'], 'guide must be in (0, 1], got nan'),
                (['--hidden-ratio', 'nan'], 'must be a number in [0, 1), got nan'),
                (['--ratios', ''], "--ratios must be KIND=RATIO,..., got ''"),
                (['--ratios', 'hidden=0.1,hidden=0.2'], '--ratios names hidden twice'),
                (
                    ['--criterion', 'fisher', '--method', 'magnitude'],
                    '--method magnitude is for --criterion mcf, got fisher',
                ),
                (['--criterion', 'random', '--scale', 'nan'], '--scale nan is for --criterion mcf'),
            )
        ),
        ('prune.py', ['CONFIG', 'x.safetensors', '--out', 'o'], 'no checkpoint x.safetensors'),
    ],
)
def test_bad_input_is_named(config, tmp_path, tool, arguments, message):
    arguments = [str(config) if word == 'CONFIG' else word for word in arguments]
    if 'DENSE' in arguments:
        dense = tmp_path / 'dense.pth'
        torch.save(build_model(Config.fromfile(config)).state_dict(), dense)
        arguments = [str(dense) if word == 'DENSE' else word for word in arguments]
    arguments = [str(tmp_path / 'o') if word == 'o' else word for word in arguments]
    done = run(tool, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list(tmp_path.glob('o/*'))


def test_a_config_without_scope_is_refused(tmp_path):
    (tmp_path / 'bare.py').write_text('model = dict(type="X")\n')
    done = run('train.py', tmp_path / 'bare.py')
    assert 'bare.py has no default_scope' in done.stderr


def test_a_bad_image_is_named(config, photos, tmp_path):
    (photos / 'dog' / '3.png').write_bytes(b'')
    done = run('train.py', config, '--work-dir', tmp_path / 'dense')
    assert done.returncode != 0
    assert 'dog/3.png: the image file is empty (0 bytes)' in done.stderr.splitlines()[-1]
    assert not list((tmp_path / 'dense').glob('*.pth'))
