"""Which parts of which network are units, which are left out and why."""

import copy

import pytest
import timm
import torch
import zoo
from mmcv.cnn.bricks.transformer import FFN
from test_kinds import structure_of
from timm.layers import Mlp, SwiGLU
from torch import nn

from mcf_mm.pruning import cut, find_classifier, find_units, mask

ATTENTION_KINDS = ('heads', 'qk', 'v')
#: Names of FFNs and of attentions by network of the zoo; {} stands for the number of a block.
NAMES = {
    'mmpretrain VisionTransformer': ('backbone.layers.{}.ffn', 'backbone.layers.{}.attn'),
    'mmpretrain layer scale': ('backbone.layers.{}.ffn', 'backbone.layers.{}.attn'),
    'mmpretrain DistilledVisionTransformer': ('backbone.layers.{}.ffn', 'backbone.layers.{}.attn'),
    'timm ViT': ('blocks.{}.mlp', 'blocks.{}.attn'),
    'timm ViT with q/k norm': ('blocks.{}.mlp', 'blocks.{}.attn'),
    'timm DeiT distilled': ('blocks.{}.mlp', 'blocks.{}.attn'),
    'Hugging Face ViT': ('vit.layers.{}.mlp', 'vit.layers.{}.attention'),
    'Hugging Face DeiT': ('deit.layers.{}.mlp', 'deit.layers.{}.attention'),
    'Hugging Face DINOv2': ('dinov2.encoder.layer.{}.mlp', 'dinov2.encoder.layer.{}.attention'),
}
SWINS = {
    'mmpretrain SwinTransformer': ('backbone.stages.{}.blocks.{}.ffn', '.attn.w_msa'),
    'mmdet SwinTransformer': ('stages.{}.blocks.{}.ffn', '.attn.w_msa'),
    'timm Swin': ('layers.{}.blocks.{}.mlp', '.attn'),
}


def names(units) -> list[str]:
    return [unit.name for unit in units]


@pytest.mark.parametrize('name', NAMES)
def test_vits_have_an_attention_and_an_ffn_in_each_block(name):
    units = find_units(zoo.network(name))
    ffn, attention = NAMES[name]
    # In some the names of another library lead to another order of modules.
    assert sorted(names(units)) == sorted(
        form.format(block) for block in (0, 1) for form in (ffn, attention)
    )
    assert units.left_out == {}
    hidden = 96 if name.startswith('timm') else 48
    for unit in units.ffns:
        assert unit.kinds == ('inputs', 'hidden')
        assert unit.sizes == dict(inputs=24, hidden=hidden)
    for unit in units.attentions:
        assert unit.sizes == dict(heads=3, qk=8, v=8)
        # Fewer channels would be another norm of query and key.
        assert unit.kinds == (('heads', 'v') if 'q/k norm' in name else ATTENTION_KINDS)


@pytest.mark.parametrize('name', SWINS)
def test_swins_have_an_attention_and_an_ffn_in_each_block(name):
    units = find_units(zoo.network(name))
    ffn, attention = SWINS[name]
    for stage in (0, 1):
        for block in (0, 1):
            path = ffn.format(stage, block)
            sizes = units.by_name[path].sizes
            assert sizes == dict(inputs=16 << stage, hidden=64 << stage)
            sizes = units.by_name[path.rpartition('.')[0] + attention].sizes
            assert sizes == dict(heads=2 << stage, qk=8, v=8)
    assert len(units) == 8 and units.left_out == {}


def test_attentions_of_t2t_that_add_their_values_are_left_out():
    units = find_units(zoo.network('mmpretrain T2T_ViT'))
    tokens = 'backbone.tokens_to_token.attention{}'
    assert names(units.ffns) == [
        *(tokens.format(number) + '.ffn' for number in (1, 2)),
        *(f'backbone.encoder.{number}.ffn' for number in (0, 1)),
    ]
    assert names(units.attentions) == ['backbone.encoder.0.attn', 'backbone.encoder.1.attn']
    reason = 'its values are added to its output (v_shortcut)'
    assert units.left_out == {tokens.format(number) + '.attn': reason for number in (1, 2)}


VIT = dict(
    arch=dict(embed_dims=24, num_layers=1, num_heads=3, feedforward_channels=48),
    img_size=32,
    patch_size=8,
)
TWINS = dict(
    arch=dict(
        embed_dims=[8, 16],
        depths=[1, 1],
        num_heads=[1, 2],
        patch_sizes=[4, 2],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        sr_ratios=[2, 1],
    ),
    out_indices=(1,),
)
#: Networks that add the residual outside of the FFN, with what is left out of them.
OUTSIDE = {
    'SwinTransformerV2': (
        dict(
            arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 4], extra_norm_every_n_blocks=0),
            img_size=32,
            window_size=4,
            out_indices=(1,),
        ),
        ['stages.0.blocks.0.ffn', 'stages.1.blocks.0.ffn'],
        ('stages.0.blocks.0.attn', 'its class ShiftWindowMSA, with 4 linear layers, is not known'),
    ),
    'BEiTViT': (
        VIT,
        ['layers.0.ffn'],
        ('layers.0.attn', 'it has q_bias, of which the core knows nothing'),
    ),
    'PCPVT': (
        TWINS,
        ['stages.0.0.ffn', 'stages.1.0.ffn'],
        (
            'stages.0.0.attn',
            'its class GlobalSubsampledAttention, with 3 linear layers, is not known',
        ),
    ),
    'RevVisionTransformer': (VIT, ['layers.0.ffn'], None),
}


@pytest.mark.parametrize('kind', OUTSIDE)
def test_ffns_whose_residual_is_added_outside_belong(kind):
    arguments, expected, left_out = OUTSIDE[kind]
    torch.manual_seed(0)
    model = zoo.part(kind, **arguments)
    model.eval()
    units = find_units(model)
    assert names(units.ffns) == expected
    assert left_out is None or units.left_out[left_out[0]] == left_out[1]
    structure = structure_of(units.ffns, dict(inputs=0.3, hidden=0.4))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        with mask(units, structure):
            masked = zoo.outputs(model, x)
        cut(model, structure)
        torch.testing.assert_close(zoo.outputs(model, x), masked, atol=1e-5, rtol=1e-5)


def block_of(name: str, **arguments) -> nn.Module:
    """The first block of a network of timm."""
    model = timm.create_model(name, **arguments)
    return (model.stages[0].blocks if hasattr(model, 'stages') else model.blocks)[0]


def mlp(part: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({'mlp': part})


OTHER_FFNS = {
    'global response norm': (
        lambda: block_of(
            'convnextv2_atto', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), conv_mlp=False
        ),
        'mlp',
        'grn.weight of the hidden width 32 lies between its layers',
    ),
    'norm': (
        lambda: mlp(Mlp(8, 24, norm_layer=nn.LayerNorm)),
        'mlp',
        'norm.weight of the hidden width 24 lies between its layers',
    ),
    'norm as wide as the embedding': (
        lambda: mlp(Mlp(8, 8, norm_layer=nn.LayerNorm)),
        'mlp',
        'norm.weight of the hidden width 8 lies between its layers',
    ),
    'another width': (lambda: mlp(Mlp(8, 32, 16)), 'mlp', 'it reads 8 channels and gives 16'),
    'gate of timm in one layer': (
        lambda: block_of(
            'vit_giant_patch14_dinov2', depth=1, img_size=28, embed_dim=24, num_heads=3
        ),
        'mlp',
        'fc1 gives 128 channels and fc2 reads 64: it is gated',
    ),
    'gate of timm in two layers': (
        lambda: mlp(SwiGLU(8, 16)),
        'mlp',
        'its class SwiGLU, with 3 linear layers, is not known',
    ),
    'gate of mmpretrain': (
        lambda: zoo.part('VisionTransformer', layer_cfgs=dict(ffn_type='swiglu_fused'), **VIT),
        'layers.0.ffn',
        'its class SwiGLUFFNFused, with 2 linear layers, is not known',
    ),
    'three layers of mmcv': (
        lambda: nn.ModuleDict({'ffn': FFN(embed_dims=8, feedforward_channels=16, num_fcs=3)}),
        'ffn',
        'its class FFN, with 3 linear layers, is not known',
    ),
    'gate of Hugging Face': (
        lambda: zoo.hugging_face('Dinov2', use_swiglu_ffn=True),
        'dinov2.encoder.layer.1.mlp',
        'its class Dinov2SwiGLUFFN, with 3 linear layers, is not known',
    ),
}


@pytest.mark.parametrize('case', OTHER_FFNS)
def test_ffns_that_compute_something_else_are_left_out_with_the_reason(case):
    build, name, reason = OTHER_FFNS[case]
    units = find_units(build())
    assert name not in units.by_name
    assert units.left_out[name] == reason


class DepthwiseFFN(nn.Module):
    """As in PVT v2: a depthwise convolution of the hidden width between the layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)


@pytest.mark.parametrize('hidden', [24, 8])
def test_an_ffn_with_a_depthwise_convolution_between_is_left_out(hidden):
    units = find_units(nn.ModuleDict({'ffn': DepthwiseFFN(8, hidden)}))
    reason = f'dwconv.weight of the hidden width {hidden} lies between its layers'
    assert not units and units.left_out == {'ffn': reason}


def test_a_layer_scale_as_wide_as_the_hidden_layer_is_no_reason():
    arch = dict(embed_dims=24, num_layers=1, num_heads=3, feedforward_channels=24)
    model = zoo.part(
        'VisionTransformer', **dict(VIT, arch=arch), layer_cfgs=dict(layer_scale_init_value=0.5)
    )
    assert find_units(model).by_name['layers.0.ffn'].sizes == dict(inputs=24, hidden=24)


def test_attentions_with_more_than_query_key_and_value_are_left_out_with_the_reason():
    model = timm.create_model(
        'eva02_tiny_patch14_224', depth=1, img_size=28, embed_dim=24, num_heads=3
    )
    reason = 'it has q_bias, of which the core knows nothing'
    assert find_units(model).left_out['blocks.0.attn'] == reason
    arguments = dict(img_size=28, patch_size=14, embed_dim=24, depth=1, num_heads=3)
    model = timm.models.eva.Eva(qkv_bias=False, **arguments)
    assert find_units(model).left_out['blocks.0.attn'].startswith("its forward takes ['rope'")
    scaled = timm.models.vision_transformer.Attention(24, num_heads=3)
    scaled.scale_of_mine = nn.Parameter(torch.ones(8))
    units = find_units(nn.ModuleDict({'attn': scaled}))
    reason = 'it has scale_of_mine, of which the core knows nothing'
    assert not units and units.left_out == {'attn': reason}


def detector(kind: str) -> nn.Module:
    attention = dict(embed_dims=16, num_heads=2, batch_first=True)
    deformable = dict(embed_dims=16, num_heads=2, num_levels=1)
    ffn = dict(embed_dims=16, feedforward_channels=40, num_fcs=2, act_cfg=dict(type='ReLU'))
    seen = deformable if kind == 'DINO' else attention
    layer = dict(self_attn_cfg=attention, cross_attn_cfg=seen, ffn_cfg=ffn)
    model = dict(
        type=kind,
        num_queries=6,
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type='ResNet', depth=18, out_indices=(2,)),
        neck=dict(
            type='ChannelMapper', in_channels=[256], kernel_size=1, out_channels=16, num_outs=1
        ),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=seen, ffn_cfg=ffn)),
        decoder=dict(num_layers=2, layer_cfg=layer, return_intermediate=True),
        positional_encoding=dict(num_feats=8, normalize=True),
        # mmdet changes its default in place, so that a second head could not be built.
        bbox_head=dict(
            type=f'{kind}Head',
            num_classes=2,
            embed_dims=16,
            loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
        ),
    )
    if kind == 'DINO':
        model.update(with_box_refine=True, as_two_stage=True, dn_cfg=dict(
            label_noise_scale=0.5, box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=4),
        ))  # fmt: skip
        model['decoder']['post_norm_cfg'] = None
        model['bbox_head']['loss_cls'] = dict(type='FocalLoss', use_sigmoid=True)
    return zoo.built('mmdet', model)


@pytest.mark.parametrize('kind', ['DETR', 'DINO'])
def test_of_detr_the_ffns_of_its_layers_are_found_and_not_its_head(kind):
    units = find_units(detector(kind))
    assert names(units) == [
        'encoder.layers.0.ffn',
        'decoder.layers.0.ffn',
        'decoder.layers.1.ffn',
    ]
    assert all(unit.sizes == dict(inputs=16, hidden=40) for unit in units)
    reason = 'nn.MultiheadAttention has query, key and value in one parameter'
    assert units.left_out['decoder.layers.0.self_attn.attn'] == reason
    if kind == 'DETR':
        reason = 'it is part of a head, without a residual connection'
        assert units.left_out['bbox_head.reg_ffn'] == reason
    else:
        assert 'MultiScaleDeformableAttention' in units.left_out['encoder.layers.0.self_attn']
    assert find_classifier(detector(kind)) is None


def test_a_cut_network_has_the_units_of_the_dense_one():
    model = zoo.network('mmpretrain SwinTransformer')
    units = find_units(model)
    cut(model, structure_of(units, dict(heads=0.5, v=0.3, hidden=0.4, inputs=0.3)))
    again = find_units(copy.deepcopy(model))
    assert names(again) == names(units) and again.left_out == {}
    assert all(unit.is_pruned for unit in again)
