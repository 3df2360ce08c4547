"""The training of a pruned network leaves files that tell of the trained network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config

from mcf_mm.engine.networks import build_model
from mcf_mm.engine.prune import prune_checkpoint
from mcf_mm.weights.files import read_header, read_weights

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / 'tools' / 'train.py'


@pytest.fixture
def pruned(cfg, tmp_path, monkeypatch) -> Path:
    """A folder as tools/prune.py leaves it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(build_model(cfg).state_dict(), tmp_path / 'dense.pth')
    cfg.custom_hooks = []
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.dump(tmp_path / 'micro.py')
    cfg = Config.fromfile(tmp_path / 'micro.py')
    criterion = dict(type='obs', allocation='predicted')
    prune_checkpoint(
        cfg, 'dense.pth', tmp_path / 'slim', num_images=10, criterion=criterion, budget='macs=70%'
    )
    return tmp_path / 'slim'


def test_files_after_recovery_are_of_the_trained_network(pruned, tmp_path):
    out = tmp_path / 'recovered'
    done = run_tool([TRAIN, pruned / 'slim.py', '--work-dir', out])
    assert done.returncode == 0, done.stderr
    weights = read_weights(out / 'slim.safetensors')
    last = torch.load(out / 'epoch_2.pth', weights_only=False)['state_dict']
    assert weights.keys() == last.keys()
    assert all(torch.equal(weights[name], last[name]) for name in last)
    cut, own = read_header(pruned / 'slim.safetensors'), read_header(out / 'slim.safetensors')
    assert own['trained'] == [{'epochs': 2, 'from': 'slim/slim.safetensors'}]
    assert all(own[key] == cut[key] for key in ('sizes', 'origin', 'criterion', 'allocation'))
    assert cut['allocation'] == 'predicted'
    card, page = (out / 'slim.md').read_text(), (out / 'report' / 'index.html').read_text()
    assert 'Accuracy by the last validation of the run that made it: accuracy/top1' in card
    assert '- trained: `epochs=2, from=slim/slim.safetensors`' in card
    assert 'an ordinary dense network' in (pruned / 'slim.md').read_text()
    assert 'It was pruned from `dense.pth`.' in (pruned / 'slim.md').read_text()
    assert (
        'an ordinary dense network' in card and 'came from `dense.pth`, and it was trained' in card
    )
    assert '# recovered, pruned' in card
    assert (
        'last validation' in page and 'No importance' not in page and 'No cost curves' not in page
    )
    known = json.loads((pruned / 'report' / 'run.json').read_text())
    record = json.loads((out / 'report' / 'run.json').read_text())
    for key in ('before', 'after', 'importance', 'curves'):
        assert record[key] == known[key], key
    for name, own in known['sizes'].items():  # units that the policy did not name are told too
        assert record['sizes'][name] == own, name
    # What is complete is not trained again, and its files come out the same.
    before = (out / 'slim.safetensors').read_bytes()
    done = run_tool([TRAIN, pruned / 'slim.py', '--work-dir', out, '--resume'])
    assert done.returncode == 0, done.stderr
    assert (out / 'slim.safetensors').read_bytes() == before


def test_no_other_network_is_written_over(pruned, tmp_path):
    files = [path for path in pruned.rglob('*') if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    done = run_tool([TRAIN, pruned / 'slim.py', '--work-dir', pruned])
    assert done.returncode and 'slim/slim.safetensors is of another network' in done.stderr
    assert 'name another folder with --work-dir' in done.stderr
    assert {path: path.read_bytes() for path in pruned.rglob('*') if path.is_file()} == before
    # The result of a training is no other's either; trained on, it tells of both.
    out, again = tmp_path / 'out', tmp_path / 'again'
    options = ['--epochs', '1', '--work-dir']
    assert run_tool([TRAIN, pruned / 'slim.py', *options, out]).returncode == 0
    done = run_tool([TRAIN, out / 'slim.py', *options, out])
    assert done.returncode and 'out/slim.safetensors is of another network' in done.stderr
    assert run_tool([TRAIN, out / 'slim.py', *options, again]).returncode == 0
    trained = read_header(again / 'slim.safetensors')['trained']
    assert [part['from'] for part in trained] == ['slim/slim.safetensors', 'out/slim.safetensors']


def test_a_backbone_is_described_as_the_detector_that_it_is_in(pruned, detection_cfg, tmp_path):
    """Costs are those of the detector, not of the classifier whose backbone it has."""
    pytest.importorskip('mmdet')
    shutil.copy(pruned / 'slim.safetensors', tmp_path / 'backbone.safetensors')
    model = Config.fromfile(ROOT / 'configs/_base_/models/retinanet_deit-tiny_sfp.py').model
    micro = Config.fromfile(tmp_path / 'micro.py').model.backbone
    model.backbone.update(
        arch=micro.arch, img_size=micro.img_size, patch_size=micro.patch_size, sizes='auto',
        init_cfg=dict(type='Pretrained', checkpoint='backbone.safetensors', prefix='backbone.'),
    )  # fmt: skip
    model.neck.in_channels = micro.arch.embed_dims
    model.bbox_head.num_classes = 2
    model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    detection_cfg.model = model
    detection_cfg.dump(tmp_path / 'detector.py')
    out = tmp_path / 'out'
    done = run_tool([TRAIN, tmp_path / 'detector.py', '--work-dir', out])
    assert done.returncode == 0, done.stderr
    header = read_header(out / 'slim.safetensors')
    assert header['trained'][0]['from'] == 'backbone.safetensors'
    assert header['origin'] == 'dense.pth'
    record = json.loads((out / 'report' / 'run.json').read_text())
    weights = read_weights(out / 'slim.safetensors')
    assert record['after']['params'] > 0.9 * sum(v.numel() for v in weights.values())
    assert 'coco/bbox_mAP' in (out / 'slim.md').read_text()


def test_a_dense_training_leaves_no_such_file(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'micro.py')
    done = run_tool([TRAIN, tmp_path / 'micro.py', '--work-dir', tmp_path / 'out'])
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / 'out').glob('*.safetensors'))
