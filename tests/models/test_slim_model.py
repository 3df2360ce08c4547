"""Networks without a slim class of their own."""

import copy

import pytest
import torch
from mmengine.registry import DefaultScope

from mcf_mm.pruning import find_units, prune
from mcf_mm.registry import MODELS

LAYER = dict(
    self_attn_cfg=dict(embed_dims=16, num_heads=2),
    ffn_cfg=dict(embed_dims=16, feedforward_channels=24),
)
DETR = dict(
    type='mmdet.DETR',
    num_queries=5,
    backbone=dict(
        type='mmdet.ResNet', depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)
    ),
    neck=dict(
        type='mmdet.ChannelMapper', in_channels=[64], kernel_size=1, out_channels=16, num_outs=1
    ),
    encoder=dict(num_layers=2, layer_cfg=LAYER),
    decoder=dict(num_layers=1, layer_cfg=dict(LAYER, cross_attn_cfg=LAYER['self_attn_cfg'])),
    positional_encoding=dict(num_feats=8, normalize=True),
    bbox_head=dict(
        type='mmdet.DETRHead',
        num_classes=2,
        embed_dims=16,
        loss_cls=dict(type='mmdet.CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
    ),
)
TIMM = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_tiny_patch16_224',
    img_size=32,
    embed_dim=24,
    depth=2,
    num_heads=3,
)


def slim(network: dict, **arguments) -> torch.nn.Module:
    network = copy.deepcopy(network)  # mmdet changes it
    base = network.pop('type')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(dict(type='mcf_mm.SlimModel', base=base, **network, **arguments))


def sizes_of(model: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(unit.sizes.values()) for unit in find_units(model)]


@pytest.mark.parametrize(
    'arguments',
    [
        dict(sizes={'encoder.layers.0.ffn': dict(inputs=9, hidden=20)}),
        dict(ffn_sizes={'encoder.layers.0.ffn': (9, 20)}),  # of mcf_mm 0.1
        dict(ffn_sizes={'encoder.layers.0.ffn': [9, 20]}),
        dict(sizes=dict(inputs=[9, 16, 16], hidden=[20, 24, 24])),
    ],
)
def test_ffns_of_detr(arguments):
    model = slim(DETR, **arguments)
    assert type(model).__name__ == 'DETR'
    assert sizes_of(model) == [(9, 20), (16, 24), (16, 24)]


def test_attention_of_timm():
    model = slim(TIMM)
    prune(model, criterion='magnitude', ratios=dict(heads=0.3, qk=0.5, v=0.2, hidden=0.3))
    sizes = find_units(model).sizes
    again = slim(TIMM, sizes=sizes)
    result = again.load_state_dict(model.state_dict())
    assert not result.missing_keys and find_units(again).sizes == sizes
    images = torch.randn(1, 3, 32, 32)
    model.train(False), again.train(False)
    assert torch.equal(again(images)[0], model(images)[0])
    message = (
        r'timm_model\.blocks\.0\.attn: the checkpoint has 2 heads, 4 qk, 6 v, the model 3 heads, '
        '8 qk, 8 v'
    )
    with pytest.raises(ValueError, match=message):
        slim(TIMM).load_state_dict(model.state_dict())


def test_what_does_not_fit():
    with pytest.raises(
        ValueError, match="sizes of mmdet.DETR names the unit 'encoder.layers.7.ffn'"
    ):
        slim(DETR, sizes={'encoder.layers.7.ffn': dict(hidden=9)})
    with pytest.raises(
        ValueError, match='ffn_sizes of .*: inputs of encoder.layers.0.ffn is 17, it must'
    ):
        slim(DETR, ffn_sizes={'encoder.layers.0.ffn': (17, 20)})
    with pytest.raises(ValueError, match="sizes of mmdet.DETR must be .*, got 'auto'"):
        slim(DETR, sizes='auto')
    with pytest.raises(ValueError, match='either sizes or ffn_sizes'):
        slim(DETR, sizes=dict(hidden=9), ffn_sizes={'encoder.layers.0.ffn': (9, 20)})
    with pytest.raises(ValueError, match="lacks 1 of .* 'encoder.layers.1.ffn.layers.1.bias'"):
        weights = slim(DETR).state_dict()
        del weights['encoder.layers.1.ffn.layers.1.bias']
        slim(DETR).load_state_dict(weights)
