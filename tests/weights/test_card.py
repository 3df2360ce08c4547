"""The folder of a slim network, ready for upload: its model card, and no path of a machine."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from fork_server import run_tool
from mmengine.config import Config

from mcf_mm.engine.networks import build_model
from mcf_mm.engine.prune import prune_checkpoint
from mcf_mm.weights.card import RELEASED, known_datasets, released_base
from mcf_mm.weights.files import read_header, read_weights, save_state_dict
from mcf_mm.weights.portable import command_line, portable
from mcf_mm.weights.slim_config import write_slim

ROOT = Path(__file__).resolve().parents[2]
FILES = ('slim.safetensors', 'slim.py', 'slim.md')
RATIOS = dict(inputs=0.4, hidden=0.4)


def front_matter(card: Path) -> tuple[dict, str]:
    """What Hugging Face reads of a card, by its own parser where it is installed."""
    _, fields, text = card.read_text().split('---\n', 2)
    fields = yaml.safe_load(fields)
    try:
        from huggingface_hub import ModelCard
    except ImportError:
        return fields, text
    assert ModelCard.load(card).data.to_dict() == fields
    return fields, text


def codes(text: str) -> list[str]:
    """The Python in a card."""
    return [part.partition('```')[0] for part in text.split('```python\n')[1:]]


@pytest.fixture
def pruned(cfg, tmp_path, monkeypatch) -> Path:
    """A folder as tools/prune.py leaves it, of data below the folder that it ran in."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(build_model(cfg).state_dict(), tmp_path / 'dense.pth')
    cfg.custom_hooks = []
    cfg.dump(tmp_path / 'micro.py')
    cfg = Config.fromfile(tmp_path / 'micro.py')
    prune_checkpoint(cfg, tmp_path / 'dense.pth', tmp_path / 'slim', num_images=10, ratios=RATIOS)
    return tmp_path / 'slim'


def test_a_folder_goes_elsewhere_as_it_is(pruned, tmp_path):
    for name in FILES:
        content = (pruned / name).read_bytes()
        assert str(tmp_path).encode() not in content and str(ROOT).encode() not in content, name
    assert read_header(pruned / 'slim.safetensors')['origin'] == 'dense.pth'
    copy = tmp_path / 'elsewhere' / 'copy'
    copy.mkdir(parents=True)
    for name in FILES:
        shutil.copy(pruned / name, copy)
    shutil.rmtree(pruned)
    assert Config.fromfile(copy / 'slim.py').load_from == str(copy / 'slim.safetensors')
    done = run_tool([ROOT / 'tools' / 'test.py', copy / 'slim.py', copy / 'slim.safetensors'])
    assert done.returncode == 0, done.stderr
    assert 'accuracy/top1' in json.loads(done.stdout.splitlines()[-1])
    # Where the images lie elsewhere too, as the card says.
    (tmp_path / 'photos').rename(tmp_path / 'moved')
    files = [copy / 'slim.py', copy / 'slim.safetensors']
    options = ['--cfg-options', f'test_dataloader.dataset.data_root={tmp_path / "moved"}']
    done = run_tool([ROOT / 'tools' / 'test.py', *files, *options])
    assert done.returncode == 0, done.stderr


def test_the_card_of_a_classifier(pruned):
    fields, text = front_matter(pruned / 'slim.md')
    assert fields == dict(
        library_name='mmpretrain',
        pipeline_tag='image-classification',
        tags=['imageclassifier', 'vision-transformer', 'pruning', 'mcf_mm', 'openmmlab'],
    )
    assert '# micro, pruned' in text
    weights = read_weights(pruned / 'slim.safetensors')
    params = sum(value.numel() for key, value in weights.items() if not key.endswith('.inputs'))
    assert f'| {params:,} |' in text
    assert '- ratios: `inputs=0.4, hidden=0.4`' in text and 'mcf_mm 0' in text
    assert '- Images: 32 x 32 pixels.\n- Classes (' in text
    assert 'pruned from `dense.pth`' in text and '- Accuracy not measured.' in text
    assert '`photos`, from where the command' in text


def test_each_way_to_load_loads(pruned, monkeypatch):
    _, text = front_matter(pruned / 'slim.md')
    monkeypatch.chdir(pruned)
    in_mmpretrain, in_timm, backbone = codes(text)
    found: dict = {}
    exec(in_mmpretrain, found)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = found['model'].eval()(image)
        exec(in_timm, found)
        assert torch.allclose(found['model'](image), wanted, atol=1e-5)
        exec(backbone, found)
        part = Config(dict(model=found['backbone'], default_scope='mmdet'))
        part = build_model(part)
        part.init_weights()
        assert part.eval()(image)[0].shape == (1, 16, 4, 4)


def test_the_card_of_a_detector(detection_cfg, tmp_path):
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    cfg = Config.fromfile(ROOT / 'configs' / 'yolos' / 'yolos_deit-tiny_8xb2-300e_coco.py')
    sizes = dict(inputs=[19, 20], hidden=[33, 40])
    cfg.model.backbone.update(
        arch=arch, img_size=(64, 96), num_det_tokens=7, init_cfg=None, sizes=sizes
    )
    cfg.model.bbox_head.embed_dims = 32
    write_slim(build_model(cfg), cfg, tmp_path, {'origin': '/secret/yolos.pth', 'seed': 3})
    fields, text = front_matter(tmp_path / 'slim.md')
    assert (fields['library_name'], fields['pipeline_tag']) == ('mmdet', 'object-detection')
    assert 'base_model' not in fields and 'license' not in fields and 'datasets' not in fields
    assert 'secret' not in text and 'pruned from `yolos.pth`' in text and 'not counted' in text
    (code,) = codes(text)
    assert "init_detector('slim.py', 'slim.safetensors', device='cpu')" in code


def test_what_is_known_of_a_released_network(tmp_path):
    name = 'deit_small_patch16_224-cd65a155.pth'
    assert (
        released_base(f'/somewhere/{name}') == RELEASED[name] == 'facebook/deit-small-patch16-224'
    )
    converted = tmp_path / 'deit_small_in1k.safetensors'
    save_state_dict(converted, {'x': torch.zeros(1)}, {'origin': name})
    assert released_base(str(converted)) == RELEASED[name]
    # A pruned network is no such base, though its header says where it came from.
    save_state_dict(converted, {'x': torch.zeros(1)}, {'origin': name, 'sizes': {}})
    assert released_base(str(converted)) is None and released_base(None) is None
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='ImageNet')))
    assert known_datasets(Config(dict(default_scope='mmpretrain', train_dataloader=loader))) == [
        'ILSVRC/imagenet-1k'
    ]


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'work' / 'run'
    assert portable(str(tmp_path / 'data/photos/')) == 'data/photos'
    assert portable(f'{tmp_path}/data/photos/') == 'data/photos/'
    assert portable('/secret/curves.json') == 'curves.json'
    value = dict(a=['/secret/x', 3], b=(str(out / 'slim.safetensors'), 'data/'), work_dir=str(out))
    assert portable(value, out) == dict(
        a=['{{ fileDirname }}/' + os.path.relpath('/secret/x', out), 3],
        b=('{{ fileDirname }}/slim.safetensors', 'data/'),
        work_dir='{{ fileDirname }}',
    )
    words = ['python', '/opt/mcf_mm/tools/prune.py', 'a b.py', f'--out={tmp_path}/x']
    words += ['--heal', 'epochs=2,folder=/secret/photos,bf16=True']
    assert command_line(words) == (
        "python prune.py 'a b.py' --out=x --heal epochs=2,folder=photos,bf16=True"
    )
