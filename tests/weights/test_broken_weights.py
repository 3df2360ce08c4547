"""Weights that are no numbers, or contradict each other, are refused by whatever reads them."""

import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint

from mcf_mm.models import SlimVisionTransformer
from mcf_mm.weights.convert import convert_checkpoint
from mcf_mm.weights.files import save_state_dict

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40)
FC1, FC2 = ('backbone.layers.1.ffn.layers.0.0.weight', 'backbone.layers.1.ffn.layers.1.weight')
INDEX = FC1.replace('weight', 'inputs')


@pytest.fixture
def weights() -> dict:
    network = SlimVisionTransformer(
        ARCH, img_size=32, patch_size=8, sizes=dict(inputs=[9, 9], hidden=[24, 24])
    )
    return {f'backbone.{key}': value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize('ending', ['safetensors', 'pth'])
@pytest.mark.parametrize(
    'name, value', [(FC1, float('nan')), ('backbone.ln1.bias', float('inf')), (FC2, -float('inf'))]
)
def test_what_is_no_number_is_read_by_nobody(weights, tmp_path, ending, name, value):
    weights[name].view(-1)[0] = value
    path = tmp_path / f'bad.{ending}'
    if ending == 'pth':
        torch.save(dict(state_dict=weights), path)
    else:
        save_state_dict(path, weights, {})
    message = rf'bad.{ending} is NaN or infinite in 1 weight: {name}'
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path, tmp_path / 'out.safetensors', 'timm')
    assert not (tmp_path / 'out.safetensors').exists()
    network = SlimVisionTransformer(ARCH, img_size=32, patch_size=8, sizes='auto')
    with pytest.raises(ValueError, match=message):  # as the inferencers of mmdet do
        load_checkpoint(network, str(path), map_location='cpu')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda w: w.update({FC1: w[FC1][:0]}), r'is \(0, 9\) and should be \(24, 9\)'),
        (lambda w: w.update({FC1: w[FC1][:, :-1]}), r'is \(24, 8\) and should be \(24, 9\)'),
        (lambda w: w.update({FC2: w[FC2][:, :-1]}), r'is \(24, 9\) and should be \(23, 9\)'),
        (lambda w: w.pop(INDEX), r'is \(24, 9\) and should be \(24, 16\)'),
        (lambda w: w.pop(FC2), 'is there without the second layer'),
        (lambda w: w.update({FC1: w[FC1].long()}), 'is torch.int64, no floating point'),
    ],
)
@pytest.mark.parametrize('to', ['timm', 'huggingface'])
def test_an_ffn_that_contradicts_itself_is_not_converted(weights, tmp_path, change, message, to):
    change(weights)
    path = tmp_path / 'bad.safetensors'
    save_state_dict(path, weights, {})
    with pytest.raises(ValueError, match=rf'bad.safetensors: .*layers.1.*{message}'):
        convert_checkpoint(path, tmp_path / 'out.safetensors', to)
    assert not (tmp_path / 'out.safetensors').exists()
