"""Pruned attention, with its sizes in a buffer, between libraries that have one qkv layer."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import build_classifier
from torch import Tensor

from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict
from mcf_mm.weights.files import indices_sha256, read_safetensors, save_state_dict

#: Heads, query and key channels per head, value channels per head.
SIZES = torch.tensor([2, 5, 3])
ARCH = dict(embed_dims=16, num_layers=2, num_heads=4, feedforward_channels=32)
BACKBONES = {
    'vit': dict(type='VisionTransformer', arch=ARCH, patch_size=8),
    'swin': dict(
        type='SwinTransformer',
        arch=dict(embed_dims=16, depths=[2, 1], num_heads=[4, 4]),
        window_size=4,
        out_indices=(1,),
    ),
    'yolos': dict(type='mcf_mm.YOLOSVisionTransformer', arch=ARCH, patch_size=8, num_det_tokens=3),
}
#: The second attention, which is pruned.
LAYERS = {
    ('vit', 'mmpretrain'): 'backbone.layers.1.attn',
    ('vit', 'timm'): 'blocks.1.attn',
    ('vit', 'original'): 'blocks.1.attn',
    ('swin', 'mmpretrain'): 'backbone.stages.0.blocks.1.attn.w_msa',
    ('swin', 'timm'): 'layers.0.blocks.1.attn',
    ('swin', 'original'): 'layers.0.blocks.1.attn',
    ('yolos', 'mmdet'): 'backbone.layers.1.attn',
    ('yolos', 'original'): 'backbone.blocks.1.attn',
}
OPENMMLAB = {'vit': 'mmpretrain', 'swin': 'mmpretrain', 'yolos': 'mmdet'}


def pruned(kind: str) -> dict[str, Tensor]:
    """Weights of a network whose second attention has two of four heads, and fewer channels."""
    torch.manual_seed(0)
    model = dict(type='ImageClassifier', backbone=dict(BACKBONES[kind], img_size=32))
    model['head'] = dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16)
    if kind == 'swin':
        model |= dict(neck=dict(type='GlobalAveragePooling'))
        model['head'] = dict(type='LinearClsHead', num_classes=2, in_channels=32)
    if kind == 'yolos':
        head = dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=16)
        model = dict(type='mcf_mm.YOLOS', backbone=model['backbone'], bbox_head=head)
    with DefaultScope.overwrite_default_scope('mmdet' if kind == 'yolos' else 'mmpretrain'):
        weights = dict(build_classifier(model).state_dict())
    layer = LAYERS[kind, OPENMMLAB[kind]]
    weights[f'{layer}.qkv.weight'] = torch.randn(26, 16)
    weights[f'{layer}.qkv.bias'] = torch.randn(26)
    weights[f'{layer}.proj.weight'] = torch.randn(16, 6)
    if kind == 'swin':
        weights[f'{layer}.relative_position_bias_table'] = torch.randn(49, 2)
    return {**weights, f'{layer}.sizes': SIZES}


@pytest.mark.parametrize('kind, library', LAYERS)
def test_there_and_back(kind, library, tmp_path):
    weights, own = pruned(kind), OPENMMLAB[kind]
    if library == own:
        with pytest.raises(ValueError, match=f'these are the names of {own} already'):
            convert_state_dict(weights, own)
        return
    layer, own_layer = LAYERS[kind, library], LAYERS[kind, own]
    facts = {'sizes': {own_layer: SIZES.tolist()}, 'units': {own_layer: {'heads': 2}}}
    save_state_dict(tmp_path / 'a.safetensors', weights, facts)
    converted = convert_checkpoint(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors', library)
    assert torch.equal(converted[f'{layer}.sizes'], SIZES)
    assert converted[f'{layer}.qkv.weight'].shape == (26, 16)
    _, header = read_safetensors(tmp_path / 'b.safetensors')
    assert header['sizes'] == {layer: [2, 5, 3]} and header['units'] == {layer: {'heads': 2}}
    back = convert_checkpoint(tmp_path / 'b.safetensors', tmp_path / 'c.safetensors', own)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize('kind', BACKBONES)
def test_hugging_face_has_no_such_attention(kind):
    weights = pruned(kind)
    layer = LAYERS[kind, OPENMMLAB[kind]]
    message = rf"'{layer}' is pruned attention, 2 heads with 5 query .* and 3 value .* huggingface"
    with pytest.raises(ValueError, match=message):
        convert_state_dict(weights, 'huggingface')
    if kind == 'vit':
        with pytest.raises(ValueError, match="'blocks.1.attn' is pruned attention"):
            convert_state_dict(convert_state_dict(weights, 'timm'), 'huggingface')


def test_names_that_are_none():
    weights = pruned('vit')
    for name in ('backbone.ln1.sizes', 'backbone.layers.1.attn.weight', 'backbone.layers.1.sizes'):
        with pytest.raises(ValueError, match=f"1 of .* in the names of mmpretrain: '{name}'"):
            convert_state_dict({**weights, name: torch.ones(3)}, 'timm')


def test_the_hash_tells_sizes_apart_and_old_files_keep_theirs():
    weights = pruned('vit')
    name = 'backbone.layers.1.attn.sizes'
    dense = {key: value for key, value in weights.items() if key != name}
    # That of no index at all, as version 0.1 wrote it.
    assert indices_sha256(dense).startswith('44136fa355b3678a')
    assert len({indices_sha256(part) for part in (dense, weights, {name: SIZES + 1})}) == 3


def test_a_file_whose_sizes_were_changed(tmp_path):
    path = tmp_path / 'a.safetensors'
    weights = {**pruned('vit'), 'backbone.layers.1.attn.sizes': torch.tensor([2, 4, 5])}
    save_state_dict(path, weights, {})
    message = r'a.safetensors: backbone.layers.1.attn.sizes say 2 heads of 4 and 5 channels, which'
    with pytest.raises(ValueError, match=message):
        read_safetensors(path)
