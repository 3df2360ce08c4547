"""Names and files of YOLOS: what is unknown, missing or of a pruned network, and the tool."""

import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from yolos_networks import (
    SMALL,
    TYPES,
    WIDTH,
    PublicYOLOS,
    assert_same,
    huggingface,
    randomised,
    small,
)

from mcf_mm.pruning import Structure, cut, find_ffns
from mcf_mm.weights.checkpoint import read_header, read_state_dict, save_state_dict
from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict
from mcf_mm.weights.timm import to_timm

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


@TYPES
def test_both_names_of_the_mid_position_embeddings(type_one, tmp_path):
    """transformers 5 renames them when it has read its files; older versions do not."""
    theirs = huggingface(type_one)
    theirs.save_pretrained(tmp_path)
    in_memory, in_file = theirs.state_dict(), load_file(tmp_path / 'model.safetensors')
    assert sum('mid_position' in key for key in in_memory) == type_one
    converted = convert_state_dict(in_memory, 'mmdet')
    assert_same(convert_state_dict(in_file, 'mmdet'), converted)
    assert_same(convert_state_dict(converted, 'huggingface'), in_file)


def test_files_of_a_slim_detector(tmp_path):
    model = small(True)
    ffn = find_ffns(model)[1]
    kept = dict(inputs=torch.arange(20), hidden=torch.arange(30))
    cut(model, Structure({ffn.name: kept}))
    header = {'sizes': {ffn.name: [20, 30]}, 'ratio': 0.5}
    save_state_dict(tmp_path / 'slim.safetensors', model.state_dict(), header)
    names = {'original': 'backbone.blocks.1.mlp', 'huggingface': 'vit.encoder.layer.1.mlp'}
    for library, name in names.items():
        there, back = tmp_path / f'{library}.safetensors', tmp_path / 'back.safetensors'
        convert_checkpoint(tmp_path / 'slim.safetensors', there, library)
        assert read_header(there)['sizes'] == {name: [20, 30]}
        convert_checkpoint(there, back, 'mmdet')
        header = read_header(back)
        assert (header['sizes'], header['ratio']) == ({ffn.name: [20, 30]}, 0.5)
    again = small(True, sizes='auto')
    again.load_state_dict(read_state_dict(str(back)))
    assert find_ffns(again)[1].sizes == dict(inputs=20, hidden=30)
    image = torch.randn(1, 3, 96, 64)
    assert torch.equal(again(image)[1], model(image)[1])


def test_keys_that_are_unknown_or_missing():
    weights = small(True).state_dict()
    scale = {'backbone.blocks.0.ls1.gamma': torch.ones(WIDTH)}
    public = convert_state_dict(weights, 'original')
    with pytest.raises(ValueError, match="1 of .* not of a YOLOS in .* of original: '.*ls1.gamma'"):
        convert_state_dict(public | scale, 'mmdet')

    def without(names: dict, *ends: str) -> dict:
        return {key: names[key] for key in names if not key.endswith(ends)}

    with pytest.raises(
        ValueError,
        match="2 weights of a YOLOS in the names of original are missing: 'backbone.det_token', "
        "'class_embed.layers.1.bias'",
    ):
        convert_state_dict(without(public, 'det_token', 'class_embed.layers.1.bias'), 'mmdet')
    theirs = convert_state_dict(weights, 'huggingface')
    gone = tuple(f'layer.1.attention.attention.{third}.bias' for third in ('query', 'key', 'value'))
    with pytest.raises(ValueError, match=f"3 weights .*'vit.encoder.{gone[0]}', .*'.*{gone[2]}'$"):
        convert_state_dict(without(theirs, *gone), 'original')
    with pytest.raises(ValueError, match=rf"\['vit.*{gone[1]}'\] are missing beside 'vit.encoder"):
        convert_state_dict(without(theirs, gone[1]), 'original')
    # A detector without its blocks in between is of another depth, and said so.
    block = [key for key in weights if key.startswith('backbone.layers.1.')]
    with pytest.raises(ValueError, match="12 weights .* of mmdet .*'backbone.layers.1.ln1.w"):
        convert_state_dict(without(weights, *block), 'original')
    # Without the embeddings between its blocks it is one of type II.
    assert_same(
        convert_state_dict(without(public, 'mid_pos_embed'), 'mmdet'),
        without(weights, 'mid_pos_embed'),
    )


def test_names_that_a_family_lacks():
    weights = small(False).state_dict()
    libraries = r"\['mmdet', 'original', 'huggingface'\]"
    for library in ('mmpretrain', 'timm'):
        message = f'the weights are of a YOLOS: to must be one of {libraries}, got .{library}.'
        with pytest.raises(ValueError, match=message):
            convert_state_dict(weights, library)
    with pytest.raises(ValueError, match='of a YOLOS: to must be one of .*, got .timm.'):
        to_timm(weights, 'deit_tiny_patch16_224')
    with pytest.raises(ValueError, match='names of mmdet already, nothing is to be converted'):
        convert_state_dict(weights, 'mmdet')
    classifier = timm.models.VisionTransformer(32, 16, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="of a ViT: to must be .*'mmpretrain', .*got 'mmdet'"):
        convert_state_dict(classifier.state_dict(), 'mmdet')


def test_tool(tmp_path, monkeypatch, capsys):
    torch.save({'model': randomised(PublicYOLOS(True, SMALL)).state_dict()}, tmp_path / 'yolos.pth')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        runpy.run_path(str(TOOL), run_name='__main__')

    run(tmp_path / 'yolos.pth', tmp_path / 'ours.safetensors', '--to', 'mmdet')
    number = sum(parameter.numel() for parameter in small(True).parameters())
    assert f'{number / 1e6:.3f} M parameters' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='yolos.pth: the weights are of a YOLOS: to must be one'):
        run(tmp_path / 'yolos.pth', tmp_path / 'ours.safetensors', '--to', 'mmpretrain')
