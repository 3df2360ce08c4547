"""tools/new_detector.py: real photos in, a config out that a Runner trains with."""

import json
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config
from mmpretrain.models import VisionTransformer
from PIL import Image

from mcf_mm.compat.mmcv_ops import _OperatorLoader, has_operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.detector_plan import plan
from mcf_mm.engine.evaluate import _names, check_same_data
from mcf_mm.engine.new_detector import Backbone, find_backbone
from mcf_mm.engine.runner import build_runner
from mcf_mm.pruning import prune
from mcf_mm.weights.files import save_state_dict

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> dict[str, Path]:
    """DeiT-Ti with random weights, dense and with FFNs that were cut."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    model = VisionTransformer(arch='deit-tiny', img_size=64)
    paths = {name: folder / f'{name}.safetensors' for name in ('dense', 'slim')}
    for name, path in paths.items():
        if name == 'slim':
            prune(model, [torch.randn(2, 3, 64, 64)], 'magnitude', ratios=dict(hidden=0.5))
        state_dict = {f'backbone.{key}': value for key, value in model.state_dict().items()}
        save_state_dict(path, state_dict, dict(origin='random'))
    return paths


@pytest.fixture
def labels(tmp_path):
    """Six photos with a box each and one without, as YOLO's text files."""
    rng = np.random.default_rng(0)
    for folder in ('photos', 'labels'):
        (tmp_path / folder).mkdir()
    for number in range(7):
        pixels = rng.integers(0, 60, (80, 100, 3), dtype=np.uint8)
        pixels[20:60, 10:50, number % 2] = 255
        Image.fromarray(pixels).save(tmp_path / 'photos' / f'{number}.jpg')
        text = f'{number % 2} 0.3 0.5 0.4 0.5\n' if number else ''
        (tmp_path / 'labels' / f'{number}.txt').write_text(text)
    (tmp_path / 'labels' / 'classes.txt').write_text('red\ngreen\n')
    return tmp_path


def new(folder: Path, *options, **settings):
    """Runs the tool in the folder, with settings that replace the usual ones; None leaves out."""
    usual = dict(
        images='photos',
        annotations='labels',
        detector='retinanet',
        backbone='deit-tiny',
        out='configs/mine.py',
    )
    given = {**usual, **settings}
    arguments = [
        part
        for name, value in given.items()
        if value is not None
        for part in (f'--{name.replace("_", "-")}', value)
    ]
    return run_tool([ROOT / 'tools' / 'new_detector.py', *arguments, *options], cwd=folder)


@pytest.mark.parametrize(
    'detector, kind', [('retinanet', 'dense'), ('faster-rcnn', 'slim'), ('yolos', 'slim')]
)
def test_the_config_trains(labels, weights, detector, kind, monkeypatch):
    settings = dict(backbone=weights['slim'])
    if kind == 'dense':
        settings = dict(checkpoint=weights['dense'])
    done = new(labels, detector=detector, size=64, **settings)
    assert done.returncode == 0, done.stderr
    assert 'labels: read as yolo (say --format otherwise)' in done.stdout
    assert 'no --val: 1 of the images, chosen with seed 0, are to validate on' in done.stdout
    assert 'class names are those of labels/classes.txt' in done.stdout
    share = re.search(r'(\d+)% of the MACs are in attentions and FFNs', done.stdout)
    budget = re.search(r'tools/prune.py configs/mine.py .* --budget macs=(\d+)%', done.stdout)
    told = re.search(r'a step takes (\S+) s here: (\d+) epochs of (\d+) steps take', done.stdout)
    assert 0 < float(told[1]) < 100 and told[3] == '3'
    assert abs(100 - 0.4 * int(share[1]) - int(budget[1])) <= 1
    text = (labels / 'configs' / 'mine.py').read_text()
    assert len(text.splitlines()) <= 60 and "classes = ('red', 'green')" in text
    monkeypatch.chdir(labels)
    cfg = load_config('configs/mine.py', options={'train_cfg.max_epochs': 1})
    cfg.train_dataloader.dataset.indices = 2
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 1
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert (labels / 'work_dirs' / 'mine' / 'epoch_1.pth').is_file() and runner.val_loop
    decay_and_rate = {
        name: (
            group['weight_decay'] > 0,
            round(group['initial_lr'] / cfg.optim_wrapper.optimizer.lr),
        )
        for group in runner.optim_wrapper.param_groups
        for name, parameter in runner.model.named_parameters()
        if parameter is group['params'][0]
    }
    for name, (decayed, rate) in decay_and_rate.items():
        of_backbone = name.startswith('backbone.')
        assert rate == (1 if of_backbone else 2), name
        if of_backbone and name.endswith(('norm1.weight', 'ln1.weight', '.bias')):
            assert not decayed, name
    hidden = runner.model.backbone.layers[0].ffn.layers[0][0].out_features
    assert hidden == (768 if kind == 'dense' else 384)


def test_the_first_loss_is_within_one_screen(labels, weights):
    assert new(labels, size=64, checkpoint=weights['dense']).returncode == 0
    options = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=2']
    done = run_tool(
        [ROOT / 'tools' / 'train.py', 'configs/mine.py', '--cfg-options', *options]
        + ['default_hooks.logger.interval=1'],
        cwd=labels,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if 'loss_cls:' in line)
    assert first + len(done.stderr.splitlines()) <= 40
    (log,) = (labels / 'work_dirs' / 'mine').glob('*/*.log')
    assert sum(str(log.name) in line for line in lines) == 1
    text = log.read_text()
    for long in ('System environment:', 'Config:\n', 'paramwise_options -- backbone', 'Hooks will'):
        assert long in text and long.strip() not in done.stdout
    assert 'loss_cls:' in text


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(backbone='resnet50'), 'must be one of deit-tiny, deit-small, deit-base or a slim'),
        (dict(backbone='gone.safetensors'), 'no weights gone.safetensors'),
        (dict(), 'no weights checkpoints/deit_tiny_in1k.safetensors. Save the weights of timm'),
        (dict(detector='ssd'), "invalid choice: 'ssd'"),
        (dict(annotations='nowhere'), 'no file or folder of annotations nowhere'),
        (dict(images='nowhere'), 'no folder of images nowhere'),
        (dict(format='voc'), 'labels has no .xml files'),
        (dict(format='voc', classes='red'), '--classes names those of yolo'),
        (dict(val='labels'), '7 images are in training and in validation, 0.jpg, 1.jpg, 2.jpg'),
        (dict(size=8), '--size must be at least 64 pixels, got 8'),
        (dict(val_share=0), 'a share of 0.0 of 7 images is 0 to validate on'),
    ],
)
def test_what_is_refused(labels, weights, settings, message):
    if 'backbone' not in settings and settings:
        settings = {'checkpoint': weights['dense'], **settings}
    done = new(labels, **settings)
    assert done.returncode and message in done.stderr
    assert not (labels / 'configs').exists() and not list(labels.rglob('*.json'))


def test_a_config_is_not_written_over(labels, weights):
    out = labels / 'configs' / 'mine.py'
    out.parent.mkdir()
    out.write_text('mine = 1')
    done = new(labels, checkpoint=weights['dense'])
    assert done.returncode and 'configs/mine.py is there already' in done.stderr
    assert out.read_text() == 'mine = 1'
    assert new(labels, '--force', checkpoint=weights['dense']).returncode == 0
    assert Config.fromfile(out).image_size == 128


def test_two_coco_files_are_used_as_they_are(labels, weights):
    assert new(labels, checkpoint=weights['dense'], data='split').returncode == 0
    files = {name: f'split/{name}.json' for name in ('train', 'val')}
    before = {name: os.stat(labels / path).st_mtime_ns for name, path in files.items()}
    done = new(
        labels,
        annotations=files['train'],
        val=files['val'],
        checkpoint=weights['dense'],
        out='again.py',
    )
    assert done.returncode == 0, done.stderr
    cfg = Config.fromfile(labels / 'again.py')
    assert cfg.train_dataloader.dataset.ann_file == files['train']
    assert cfg.val_evaluator.ann_file == files['val']
    assert before == {n: os.stat(labels / path).st_mtime_ns for n, path in files.items()}
    assert len(json.loads((labels / files['train']).read_text())['images']) == 6


def test_weights_say_which_network_they_are(weights, tmp_path):
    slim = str(weights['slim'])
    assert find_backbone(slim) == Backbone('deit-tiny', slim, True)
    with pytest.raises(ValueError, match='is 192 wide, has 12 blocks .* expected deit-small'):
        find_backbone('deit-small', str(weights['dense']))
    with pytest.raises(ValueError, match='--checkpoint is for a dense backbone'):
        find_backbone(slim, slim)
    save_state_dict(tmp_path / 'timm.safetensors', {'cls_token': torch.zeros(1, 1, 192)}, {})
    with pytest.raises(ValueError, match=r"has no backbone\.patch_embed.*such as \['cls_token'\]"):
        find_backbone('deit-tiny', str(tmp_path / 'timm.safetensors'))


def test_compiled_operators_are_told_from_the_stand_in():
    import mmcv._ext

    assert has_operators() == (not isinstance(mmcv._ext.__loader__, _OperatorLoader))


def test_the_plan_follows_the_number_of_images():
    few, many = plan(150, 'retinanet', has_gpu=False), plan(5000, 'retinanet', has_gpu=False)
    assert (few.epochs, few.batch, few.lr) == (40, 2, 1e-4) and many.epochs == 12
    assert plan(150, 'yolos', has_gpu=False).epochs == 4 * few.epochs
    on_gpu = plan(150, 'retinanet', has_gpu=True)
    assert on_gpu.batch == 8 and on_gpu.lr == 2e-4 and on_gpu.epochs == 300
    assert plan(1, 'retinanet', has_gpu=False).batch == 1


def test_the_commands_that_follow_run_as_they_are_printed(labels, weights):
    """Train, prune, recover, one table and pictures of the images that were not trained on."""
    done = new(labels, '--val-share', '0.3', size=64, checkpoint=weights['dense'])
    assert done.returncode == 0, done.stderr
    text = (labels / 'configs' / 'mine.py').read_text()
    with (labels / 'configs' / 'mine.py').open('a') as file:  # so short a training finds little
        file.write('model.update(test_cfg=dict(score_thr=0.0))\n')
    epochs = re.search(r'max_epochs = (\d+)', text)[1]
    commands = done.stdout.partition('Next:\n\n')[2].replace('\\\n', ' ').splitlines()
    short = [line.replace(f'epoch_{epochs}.pth', 'epoch_3.pth') for line in commands]
    short[0] += ' --epochs 3'
    short[2] = re.sub(r'--epochs \d+', '--epochs 1', short[2])
    outputs = []
    for line in short:
        _, tool, *arguments = shlex.split(line)
        done = run_tool([ROOT / 'tools' / Path(tool).name, *arguments], cwd=labels)
        assert done.returncode == 0, f'{line}\n{done.stderr}'
        outputs.append(done.stdout)
    table = outputs[3].splitlines()
    assert '| | dense | pruned |' in table
    rows = {line.split(' | ')[0].removeprefix('| '): line for line in table if line[:2] == '| '}
    dense, pruned = rows['MACs'].split(' | ')[1:]
    assert float(pruned.split()[0]) < float(dense.split()[0])
    assert {'parameters', 'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/red_precision'} <= set(rows)
    assert list(json.loads(table[-1])) == ['dense', 'pruned']
    validated = json.loads((labels / 'data' / 'mine' / 'val.json').read_text())['images']
    drawn = {path.name for path in (labels / 'work_dirs' / 'mine_pictures').iterdir()}
    assert drawn == {image['file_name'] for image in validated} and len(drawn) == 2


def test_networks_that_are_tested_on_different_data_are_not_compared(labels, weights):
    configs = []
    for name, seed in (('one', 0), ('two', 1)):
        out = f'configs/{name}.py'
        assert new(labels, size=64, checkpoint=weights['dense'], out=out, seed=seed).returncode == 0
        configs.append(labels / out)
    tool, dense = ROOT / 'tools' / 'test.py', weights['dense']
    done = run_tool([tool, configs[0], dense, '--against', configs[1], dense], cwd=labels)
    assert done.returncode and 'of the two configs is of different data' in done.stderr
    assert 'data/one/val.json' in done.stderr and 'data/two/val.json' in done.stderr
    cfg = Config.fromfile(configs[0])
    check_same_data(cfg, Config.fromfile(configs[0]))
    for change in (
        {'test_dataloader.dataset.indices': 1},
        {'test_dataloader.dataset.metainfo.classes': ('green', 'red')},
        {'test_evaluator.ann_file': 'data/two/val.json'},
    ):
        other = Config.fromfile(configs[0])
        other.merge_from_dict(change)
        with pytest.raises(ValueError, match='test_evaluator=|indices=1|metainfo='):
            check_same_data(cfg, other)
    several = [
        Config(dict(test_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[part]))))
        for part in (dict(ann_file='a.json'), dict(ann_file='b.json'))
    ]
    with pytest.raises(ValueError, match='a.json.*b.json'):
        check_same_data(*several)


def test_two_networks_of_a_kind_keep_their_names():
    configs = [SimpleNamespace(filename=name) for name in ('a/one.py', 'b/two.py')]
    assert _names(configs, ['w.pth'] * 2, ['dense', 'pruned']) == ['dense', 'pruned']
    assert _names(configs, ['w.pth'] * 2, ['dense'] * 2) == ['one', 'two']
    same = configs[:1] * 2
    assert _names(same, ['v.pth', 'w.pth'], ['dense'] * 2) == ['v.pth', 'w.pth']
    assert _names(same, ['w.pth'] * 2, ['dense'] * 2) == ['1: one', '2: one']


def test_what_fails_late_leaves_all_as_it_was(labels, weights):
    assert new(labels, size=64, checkpoint=weights['dense']).returncode == 0
    files = [path for path in labels.rglob('*') if path.suffix in ('.py', '.json')]
    before = {path: path.read_bytes() for path in files}
    # A picture that is damaged is found after the annotations were written.
    (labels / 'photos' / '3.jpg').write_bytes(b'no picture')
    done = new(labels, '--force', size=64, checkpoint=weights['dense'], seed=1)
    assert done.returncode and '3.jpg' in done.stderr
    assert {path: path.read_bytes() for path in files} == before
