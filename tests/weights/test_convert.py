"""Conversion between timm's and mmpretrain's names, with real networks of both libraries."""

import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import build_classifier
from safetensors.torch import load_file, save_file

from mcf_mm.pruning import Structure, cut, find_ffns
from mcf_mm.weights.checkpoint import read_header, read_state_dict, save_state_dict
from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


@pytest.fixture(scope='module', autouse=True)
def mmpretrain_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def mmpretrain_deit(backbone: dict, head: str = 'VisionTransformerClsHead', width: int = 192):
    return build_classifier(
        dict(
            type='ImageClassifier',
            backbone=dict(img_size=224, patch_size=16, **backbone),
            head=dict(type=head, num_classes=1000, in_channels=width),
        )
    ).eval()


def small_timm_deit(**kwargs):
    torch.manual_seed(0)
    model = timm.create_model(
        'deit_tiny_patch16_224', depth=2, img_size=32, num_classes=5, **kwargs
    )
    return model.eval()


def logits(classifier, images: torch.Tensor) -> torch.Tensor:
    return classifier.head(classifier.extract_feat(images))


def assert_same(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


@torch.inference_mode()
def test_real_weights_give_the_same_logits(shared_data):
    weights = load_file(shared_data / 'deit_tiny_in1k.safetensors')
    theirs = timm.create_model('deit_tiny_patch16_224').eval()
    theirs.load_state_dict(weights)
    ours = mmpretrain_deit(dict(type='VisionTransformer', arch='deit-tiny'))
    ours.load_state_dict(convert_state_dict(weights, 'mmpretrain'))
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(ours, images), theirs(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    'name, backbone, head',
    [
        (
            'deit_tiny_patch16_224',
            dict(type='mcf_mm.SlimVisionTransformer', arch='deit-tiny'),
            'VisionTransformerClsHead',
        ),
        (
            'deit_tiny_distilled_patch16_224',
            dict(type='DistilledVisionTransformer', arch='deit-tiny'),
            'DeiTClsHead',
        ),
    ],
)
@torch.inference_mode()
def test_random_weights_give_the_same_logits(name, backbone, head):
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    ours = mmpretrain_deit(backbone, head)
    ours.load_state_dict(convert_state_dict(theirs.state_dict(), 'mmpretrain'))
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(logits(ours, images), theirs(images), atol=1e-4, rtol=0)
    back = convert_state_dict(convert_state_dict(theirs.state_dict(), 'mmpretrain'), 'timm')
    assert_same(back, theirs.state_dict())


def test_slim_network_keeps_sizes_and_indices(tmp_path):
    theirs = small_timm_deit()
    kept = dict(inputs=torch.arange(0, 192, 2), hidden=torch.arange(0, 768, 3))
    cut(theirs, Structure({'blocks.1.mlp': kept}))
    header = {'origin': 'deit', 'sizes': {'blocks.1.mlp': [96, 256]}, 'ratio': 0.5}
    save_state_dict(tmp_path / 'timm.safetensors', theirs.state_dict(), header)
    converted = convert_checkpoint(
        tmp_path / 'timm.safetensors', tmp_path / 'mm.safetensors', 'mmpretrain'
    )
    assert torch.equal(converted['backbone.layers.1.ffn.layers.0.0.inputs'], kept['inputs'])
    assert converted['backbone.layers.1.ffn.layers.0.0.weight'].shape == (256, 96)
    header = read_header(tmp_path / 'mm.safetensors')
    assert header['sizes'] == {'backbone.layers.1.ffn': [96, 256]}
    assert (header['origin'], header['ratio']) == ('deit', 0.5)

    arch = dict(embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=768)
    backbone = dict(type='mcf_mm.SlimVisionTransformer', arch=arch, img_size=32, patch_size=16)
    head = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=192)
    ours = build_classifier(
        dict(type='ImageClassifier', backbone=dict(backbone, sizes='auto'), head=head)
    ).eval()
    ours.load_state_dict(read_state_dict(str(tmp_path / 'mm.safetensors')))
    assert [tuple(ffn.sizes.values()) for ffn in find_ffns(ours)] == [(192, 768), (96, 256)]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(logits(ours, images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize('wrap', ['model', 'state_dict', None])
def test_files_there_and_back_are_bit_equal(tmp_path, wrap):
    weights = small_timm_deit().state_dict()
    torch.save({wrap: weights} if wrap else weights, tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.safetensors', 'mmpretrain')
    assert read_header(tmp_path / 'b.safetensors')['origin'] == 'a.pth'
    convert_checkpoint(tmp_path / 'b.safetensors', tmp_path / 'c.pth', 'timm')
    back = torch.load(tmp_path / 'c.pth', weights_only=True)['state_dict']
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', 'b.safetensors', 'c.pth']


def test_unknown_keys_are_said_by_name():
    weights = small_timm_deit().state_dict()
    with pytest.raises(
        ValueError, match=r"1 of \d+ keys are not of a ViT in the names of timm: 'blocks.0.ls1.ga"
    ):
        convert_state_dict({**weights, 'blocks.0.ls1.gamma': torch.ones(192)}, 'mmpretrain')
    with pytest.raises(ValueError, match="none of the 1 keys is of a ViT, DeiT or.*'norm.inputs'"):
        convert_state_dict({'norm.inputs': torch.ones(1)}, 'mmpretrain')
    converted = convert_state_dict(weights, 'mmpretrain')
    with pytest.raises(ValueError, match='names of mmpretrain already, nothing is to be converted'):
        convert_state_dict(converted, 'mmpretrain')
    with pytest.raises(ValueError, match='names of original already, nothing is to be converted'):
        convert_state_dict(weights, 'original')
    with pytest.raises(ValueError, match=r"to must be one of \['mmpretrain', .*\], got 'mmdet'"):
        convert_state_dict(weights, 'mmdet')


class Payload:
    def __reduce__(self):
        return (print, ('a pickle was executed',))


def test_files_that_cannot_be_read(tmp_path, capsys):
    output = tmp_path / 'out.safetensors'
    torch.save({'model': Payload()}, tmp_path / 'code.pth')
    with pytest.raises(ValueError, match=r'code\.pth: holds more than tensors'):
        convert_checkpoint(tmp_path / 'code.pth', output, 'timm')
    assert 'executed' not in capsys.readouterr().out
    torch.save({'epoch': 3}, tmp_path / 'none.pth')
    with pytest.raises(ValueError, match=r"none\.pth: no weights at the top level, under 'model'"):
        convert_checkpoint(tmp_path / 'none.pth', output, 'timm')
    torch.save(small_timm_deit().state_dict(), tmp_path / 'whole.pth')
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'half\.pth is not a checkpoint that torch'):
        convert_checkpoint(tmp_path / 'half.pth', output, 'mmpretrain')
    with pytest.raises(FileNotFoundError, match='no checkpoint .*absent.pth'):
        convert_checkpoint(tmp_path / 'absent.pth', output, 'timm')
    with pytest.raises(ValueError, match='must end in .safetensors, .pth, .pt, .bin or .ckpt'):
        convert_checkpoint(tmp_path / 'weights.npz', output, 'timm')
    with pytest.raises(
        ValueError, match='the output must end in .safetensors or .pth, got out.bin'
    ):
        convert_checkpoint(tmp_path / 'whole.pth', 'out.bin', 'timm')
    assert not output.exists()


def test_tool(tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *args])
        runpy.run_path(str(TOOL), run_name='__main__')

    monkeypatch.chdir(tmp_path)
    save_file(small_timm_deit().state_dict(), 'in.safetensors')
    run('in.safetensors', 'new/out.safetensors', '--to', 'mmpretrain')
    assert 'new/out.safetensors: 32 tensors, 1.' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='^error: new/out.safetensors: these are the names of mm'):
        run('new/out.safetensors', 'out.pth', '--to', 'mmpretrain')
