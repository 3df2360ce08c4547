"""Weights whose numbers make no sense are an error: their kind, indices, sizes, NaN."""

import pytest
import torch
from micro_networks import slim_vit, swin
from torch import Tensor

from mcf_mm.weights.check import check_finite, check_slim_buffers, check_weights


def test_kinds_of_numbers():
    weights = slim_vit().state_dict()
    index = 'backbone.layers.1.ffn.layers.0.0.inputs'
    assert check_weights(slim_vit(), {**weights, index: weights[index].to(torch.int8)}) == []
    assert check_weights(slim_vit(), {k: v.to(torch.bfloat16) if v.is_floating_point() else v
                                      for k, v in weights.items()}) == []  # fmt: skip
    message = r'inputs is torch.float32 \(8,\), not torch.int64 \(8,\)'
    with pytest.raises(ValueError, match=message):
        check_weights(slim_vit(), {**weights, index: weights[index].float()})
    name = 'backbone.ln1.weight'
    with pytest.raises(ValueError, match=r'is torch.int64 \(16,\), not torch.float32 \(16,\)'):
        check_weights(slim_vit(), {**weights, name: weights[name].long()})


@pytest.mark.parametrize(
    'inputs, message',
    [
        ([0, 2, 4, 6, 8, 10, 12, 16], 'go up to 16, the network has 16 channels; the file is'),
        ([0, 2, 4, 6, 8, 10, 12, 12], 'are not ascending, from 0 on'),
        ([2, 0, 4, 6, 8, 10, 12, 14], 'are not ascending, from 0 on'),
        ([-1, 2, 4, 6, 8, 10, 12, 14], 'are not ascending, from 0 on'),
        ([], r'are no indices: torch.float32, shape \(0,\)'),
    ],
)
def test_indices_that_make_no_sense(inputs, message):
    index = 'backbone.layers.1.ffn.layers.0.0.inputs'
    weights = {**slim_vit().state_dict(), index: torch.tensor(inputs)}
    with pytest.raises(ValueError, match=rf'^a\.pth: {index} {message}'):
        check_slim_buffers(weights, 'a.pth')
    if inputs:
        with pytest.raises(ValueError, match=message):
            check_weights(slim_vit(), weights)


def attention(sizes: Tensor, rows: int = 28, columns: int = 6) -> dict[str, Tensor]:
    """Two heads of 5 query and key and 4 value channels, unless told otherwise."""
    weights = {'qkv.weight': torch.ones(rows, 16), 'proj.weight': torch.ones(16, columns)}
    return {'a.sizes': sizes, **{f'a.{name}': value for name, value in weights.items()}}


@pytest.mark.parametrize(
    'weights, message',
    [
        (attention(torch.tensor([2, 5, 4])), r'say 2 heads of 5 and 4 .* proj.weight \(16, 6\)'),
        (attention(torch.tensor([2, 5, 3])), r'say 2 heads of 5 and 3 .* qkv.weight \(28, 16\)'),
        (attention(torch.tensor([2, 0, 4])), r'are not heads and channels .* \[2, 0, 4\]'),
        (attention(torch.tensor([2, 5])), r'are not heads and channels per head, but \[2, 5\]'),
    ],
)
def test_sizes_that_make_no_sense(weights, message):
    with pytest.raises(ValueError, match=f'^the checkpoint: a.sizes {message}'):
        check_slim_buffers(weights)
    check_slim_buffers(attention(torch.tensor([2, 5, 4]), columns=8))
    check_slim_buffers({'inputs': torch.ones(2), 'a.inputs': -torch.ones(2)})  # of somebody else


def test_nan_and_infinity():
    model = swin()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    mask = 'backbone.stages.0.blocks.0.attn.attn_mask'
    weights[mask] = torch.full((2, 2), -torch.inf)
    check_finite(weights)
    check_finite(weights, model=model)
    for value in (torch.nan, torch.inf):
        broken = {**weights, 'head.fc.bias': torch.tensor([0.0, value])}
        for network in (None, model):
            with pytest.raises(
                ValueError, match=r'^a.pth is NaN or infinite in 1 weight: head.fc.bias'
            ):
                check_finite(broken, 'a.pth', network)
    with pytest.raises(ValueError, match=rf'^the checkpoint .* 1 weight: {mask}\. Take an'):
        check_finite({**weights, mask: torch.full((2, 2), torch.nan)})
    every = {name: value * torch.nan for name, value in weights.items() if 'norm' in name}
    with pytest.raises(ValueError, match=r'in \d\d weights: .*, \.\.\.\. Take an earlier'):
        check_finite(every)
