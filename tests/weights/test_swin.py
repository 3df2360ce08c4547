"""mmpretrain's first files of Swin: names of then, read by mmpretrain's class of today."""

import re

import pytest
import torch
from mmpretrain.models import SwinTransformer
from safetensors.torch import load_file
from torch import nn

from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict
from mcf_mm.weights.swin import modern_swin_names, relative_position_index

ARCH = dict(embed_dims=8, depths=[2, 2], num_heads=[2, 4])
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = SwinTransformer(arch=ARCH, img_size=32, window_size=4, out_indices=(1,))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.train(False)
    return model


def old_names(model: nn.Module, prefix: str = '') -> dict:
    """As version 1 saved it."""
    names = {'norm1.weight': 'norm.weight', 'norm1.bias': 'norm.bias'}
    weights = {prefix + names.get(name, name): v for name, v in model.state_dict().items()}
    weights[f'{prefix}stages.0.blocks.1.attn.attn_mask'] = torch.zeros(4, 16, 16)
    return weights


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('num_layers', [None, 2])
def test_the_names_that_the_class_would_give(prefix, num_layers):
    source, weights = build(0), old_names(build(0), prefix)
    old = modern_swin_names(weights, prefix, num_layers)
    assert set(old) == {
        f'{prefix}norm.weight',
        f'{prefix}norm.bias',
        f'{prefix}stages.0.blocks.1.attn.attn_mask',
    }
    assert list(weights) == [prefix + name for name in source.state_dict()]
    assert modern_swin_names(weights, prefix) == []
    # mmpretrain's own class, which renames by itself, ends at the same.
    ours, theirs = build(1), build(2)
    ours.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    theirs.load_state_dict(old_names(source))
    with torch.inference_mode():
        expected = source(IMAGES)[0]
        assert torch.equal(ours(IMAGES)[0], expected)
        assert torch.equal(theirs(IMAGES)[0], expected)


def test_other_weights_stay_as_they_are():
    weights = {'norm.weight': torch.ones(2), 'layers.0.ln1.weight': torch.ones(2)}
    assert modern_swin_names(weights) == [] and list(weights)[0] == 'norm.weight'
    weights = old_names(build(0), 'backbone.')
    assert modern_swin_names(weights) == [] and 'backbone.norm.weight' in weights


def test_the_converter_takes_old_files(tmp_path):
    source = build(0)
    weights = {'state_dict': old_names(source, 'backbone.'), 'meta': {'epoch': 300}}
    weights['state_dict']['head.fc.weight'] = torch.randn(5, 16)
    torch.save(weights, tmp_path / 'old.pth')
    convert_checkpoint(tmp_path / 'old.pth', tmp_path / 'new.safetensors', 'mmpretrain')
    found = load_file(tmp_path / 'new.safetensors')
    model = build(1)
    model.load_state_dict(
        {name.removeprefix('backbone.'): v for name, v in found.items() if 'head' not in name}
    )
    with torch.inference_mode():
        assert torch.equal(model(IMAGES)[0], source(IMAGES)[0])

    # To other libraries as well, with the bits of a file of today.
    modern = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    modern['head.fc.weight'] = weights['state_dict']['head.fc.weight']
    converted = convert_state_dict(weights['state_dict'], 'timm')
    expected = convert_state_dict(modern, 'timm')
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match='these are the names of mmpretrain already'):
        convert_state_dict(modern, 'mmpretrain')


def test_the_index_of_biases():
    attention = build(0).stages[0].blocks[0].attn.w_msa
    index = relative_position_index('a', attention.relative_position_bias_table)
    assert torch.equal(index, attention.relative_position_index)
    with pytest.raises(ValueError, match=re.escape("'a' has 48 rows, which is no square window's")):
        relative_position_index('a', torch.zeros(48, 2))
