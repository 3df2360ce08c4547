"""The benchmark on COCO: what it would run, and all of it with small networks and ten photos."""

import importlib
import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fork_server import run_tool
from test_box_detectors import small_config
from test_detector_configs import CONFIGS, VIT, classifier

from mcf_mm.pruning import prune
from mcf_mm.weights.checkpoint import save_state_dict

TOOL = CONFIGS.parent / 'tools' / 'benchmarks' / 'coco_gpu.py'


def test_a_dry_run(tmp_path):
    done = run_tool([TOOL, '--dry-run', '--gpus', 8, '--amp', '--out', 'out'], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if 'tools/train.py' in line]
    configs = [re.search(r'train.py (\S+)', command)[1] for command in commands]
    assert all(Path(config).exists() for config in configs)
    assert [('mcf-deit' in config) for config in configs] == [False, True] * 4
    names = [Path(config).name.split('_')[0] for config in configs[::2]]
    assert names == ['retinanet', 'mask-rcnn', 'yolos', 'yolos']
    for command, config in zip(commands, configs, strict=True):
        assert '--nproc_per_node=8' in command and '--launcher pytorch --cfg-options' in command
        assert '--amp' in command and '--auto-scale-lr' in command and '--resume' not in command
        assert ('window_size=14' in command) == ('yolos' not in config)
    assert '# out/yolos-s_pruned_seed0: checkpoints and logs' in done.stdout
    assert 'out/results.json and out/results.md' in done.stdout
    assert not list(tmp_path.iterdir())
    done = run_tool(
        [TOOL, '--dry-run', '--only', 'yolos-ti', '--images', 64, '--pruned', 'tiny=a.safetensors'],
        cwd=tmp_path,
    )
    dense, pruned = (line for line in done.stdout.splitlines() if 'tools/train.py' in line)
    assert 'train_dataloader.dataset.indices=64' in dense and 'checkpoint=' not in dense
    assert 'model.backbone.init_cfg.checkpoint=a.safetensors' in pruned
    assert 'train_cfg.max_epochs=1' in pruned and 'yolos-ti_pruned_seed0_64images' in pruned


def test_what_stops_it_before_the_first_run(tmp_path):
    done = run_tool([TOOL, '--only', 'yolos-ti'], cwd=tmp_path)
    assert done.returncode == 1
    assert 'error: these files are missing: checkpoints/deit_tiny_in1k.safetensors' in done.stderr
    assert 'data/coco/annotations/instances_train2017.json' in done.stderr
    assert 'work_dirs/mcf_deit-tiny_8xb128_in1k/slim.safetensors' in done.stderr
    done = run_tool([TOOL, '--pruned', 'base=x', '--dry-run'], cwd=tmp_path)
    assert "error: --pruned has ['base=x']; it takes tiny=FILE and small=FILE" in done.stderr
    assert not list(tmp_path.iterdir())


def test_trains_goes_on_and_writes_the_table(coco_mini, tmp_path, no_looks, monkeypatch):
    source = classifier(dict(VIT, type='mcf_mm.SlimVisionTransformer'))
    for kind in ('deit', 'mcf-deit'):
        if kind == 'mcf-deit':
            prune(source, [torch.randn(4, 3, 64, 64)], ratios=0.4)
        save_state_dict(tmp_path / f'{kind}.safetensors', source.state_dict(), {})
        name = f'retinanet_{kind}-tiny_sfp_2cpu-12e_facemask.py'
        cfg = small_config(name, coco_mini, tmp_path / 'w')
        cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / f'{kind}.safetensors')
        cfg.pop('work_dir')
        cfg.dump(tmp_path / f'{kind}.py')
    out = tmp_path / 'out'
    command = [TOOL, '--pair', 'small', tmp_path / 'deit.py', tmp_path / 'mcf-deit.py']
    command += ['--images', 10, '--batch', 1, '--out', out]
    done = run_tool(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = json.loads((out / 'results.json').read_text())
    assert [row['kind'] for row in first] == ['dense', 'pruned']
    assert all(0 <= row['AP'] <= 1 and row['images_per_second'] > 0 for row in first)
    assert first[1]['params'] < first[0]['params'] and first[1]['macs'] < first[0]['macs']
    table = (out / 'results.md').read_text()
    assert table in done.stdout and len(table.splitlines()) == 4
    assert '| small | pruned | 0 |' in table

    # Once more without --resume, then with it, and as it would go on after a kill.
    monkeypatch.syspath_prepend(str(TOOL.parent))
    tool = importlib.import_module('coco_gpu')
    pair = [['small', tmp_path / 'deit.py', tmp_path / 'mcf-deit.py']]
    args = Namespace(only=None, pair=pair, pruned=[], seeds=[0], images=10, out=out)
    runs = tool.plan(args)
    with pytest.raises(ValueError, match='_10images hold runs already: add --resume'):
        tool.check(runs, resume=False)
    assert all(tool.complete(run.config, run.work_dir, run.epochs) for run in runs)
    assert not tool.complete(runs[0].config, runs[0].work_dir, epochs=2)
    command_of = tool.train_command(runs[0].config, runs[0].work_dir, seed=0)
    assert '--resume' in command_of
    (out / 'results.json').unlink()
    done = run_tool([*command, '--resume'], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'small_dense_seed0_10images is complete' in done.stdout
    again = json.loads((out / 'results.json').read_text())
    assert [row['AP'] for row in again] == [row['AP'] for row in first]
