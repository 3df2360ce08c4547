"""Distances between networks, and where the residual stream of each library is seen."""

import pytest
import torch
from torch import nn
from zoo import NETWORKS, images, network, outputs

from mcf_mm.pruning import find_ffns
from mcf_mm.pruning.distances import blocks_distance, find_streams, logits_distance, recorded


def test_distances_by_hand():
    seen, wanted = torch.randn(4, 5), torch.randn(4, 5)
    soft = (wanted / 2).softmax(-1)
    expected = (soft * (soft.log() - (seen / 2).log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(logits_distance(seen, wanted, 2.0), expected)
    assert logits_distance(seen, seen) == 0
    given, targets = dict(a=seen, b=seen), dict(a=wanted, b=wanted + 3)
    squares = [(seen - target).square().mean() for target in targets.values()]
    sizes = [target.square().mean() for target in targets.values()]
    expected = (squares[0] / sizes[0] + squares[1] / sizes[1]) / 2
    torch.testing.assert_close(blocks_distance(given, targets), expected)
    expected = (squares[0] + squares[1]) / wanted.var() / 2
    torch.testing.assert_close(blocks_distance(given, targets, centred=True), expected)


def test_hooks_go_away_and_the_first_part_of_a_tuple_is_kept():
    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, None

    module = Pair()
    with recorded({'pair': module}) as seen:
        module(torch.zeros(2))
    assert torch.equal(seen['pair'], torch.ones(2))
    assert not module._forward_hooks


#: Where the stream is: behind the FFN, or behind the block that it is in.
STREAMS = {
    'mmpretrain VisionTransformer': 'backbone.layers.1.ffn',
    'mmpretrain layer scale': 'backbone.layers.1.ffn',
    'mmpretrain DistilledVisionTransformer': 'backbone.layers.1.ffn',
    'mmpretrain T2T_ViT': 'backbone.encoder.1.ffn',
    'mmpretrain SwinTransformer': 'backbone.stages.1.blocks.1.ffn',
    'mmdet SwinTransformer': 'stages.1.blocks.1.ffn',
    'timm ViT': 'blocks.1',
    'timm ViT with q/k norm': 'blocks.1',
    'timm DeiT distilled': 'blocks.1',
    'timm Swin': 'layers.1.blocks.1',
    'Hugging Face ViT': 'vit.layers.1',
    'Hugging Face DeiT': 'deit.layers.1',
    'Hugging Face DINOv2': 'dinov2.encoder.layer.1',
}


@pytest.mark.parametrize('name', NETWORKS)
def test_the_residual_stream_is_found(name):
    model = network(name)
    x = images(name)
    before = outputs(model, x)
    streams = find_streams(model, lambda: model(x))
    ffns = find_ffns(model)
    assert list(streams) == [ffn.name for ffn in ffns]
    assert list(streams.values())[-1] == STREAMS[name]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(outputs(model, x), before)


def test_ffns_that_do_not_run_are_left_out_and_others_stand_for_themselves(network):
    network.blocks[1].forward = lambda x: x
    network.blocks[2].forward = lambda x: network.blocks[2].mlp(x)  # without residual
    x = torch.randn(2, 5, 12)
    streams = find_streams(network, lambda: network(x))
    assert streams == {'blocks.0.mlp': 'blocks.0', 'blocks.2.mlp': 'blocks.2.mlp'}


def test_a_map_with_channels_second_is_a_stream(network):
    """As ConvNeXt's blocks put it out."""
    block = network.blocks[1]
    block.register_forward_hook(lambda module, args, x: x.transpose(1, 2)[..., None])
    x = torch.randn(2, 5, 12)
    streams = find_streams(network, lambda: network.blocks[1](x))
    assert streams == {'blocks.1.mlp': 'blocks.1'}
