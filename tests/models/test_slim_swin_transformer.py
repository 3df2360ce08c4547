"""Slim Swin Transformers: dense as mmpretrain's, other windows and grids, all kinds of units."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import SwinTransformer

from mcf_mm.models import SlimSwinTransformer
from mcf_mm.pruning import cut, find_units, mask, prune
from mcf_mm.pruning.attention import SlimWindowAttention
from mcf_mm.weights.checkpoint import save_state_dict

ARCH = dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4])
#: 6 x 6 tokens, so that windows of 4 are shifted, masked and padded.
SMALL = dict(arch=ARCH, img_size=24, window_size=4, pad_small_map=True, out_indices=(0, 1))
RATIOS = dict(heads=0.5, qk=0.3, v=0.4, hidden=0.3, inputs=0.2)
IMAGES = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def build(kind=SlimSwinTransformer, **kwargs) -> SwinTransformer:
    torch.manual_seed(0)
    model = kind(**{**SMALL, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.train(False)
    return model


@pytest.mark.parametrize('use_abs_pos_embed', [False, True])
def test_dense_it_is_that_of_mmpretrain(use_abs_pos_embed):
    ours = build(use_abs_pos_embed=use_abs_pos_embed)
    theirs = build(SwinTransformer, use_abs_pos_embed=use_abs_pos_embed)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        isinstance(unit.module, SlimWindowAttention) and not unit.is_pruned
        for unit in find_units(ours).attentions
    )
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), atol=1e-5, rtol=1e-5)


def test_pruned_it_is_the_masked_one(tmp_path):
    """The tables of biases lose the pruned heads; one class for sizes of the checkpoint."""
    model = build()
    structure = prune(copy.deepcopy(model), criterion='magnitude', ratios=RATIOS)
    with mask(find_units(model), structure):
        expected = model(IMAGES)
    cut(model, structure)
    tables = [
        unit.module.relative_position_bias_table.shape for unit in find_units(model).attentions
    ]
    assert tables == [(49, 1), (49, 1), (49, 2), (49, 2)]
    torch.testing.assert_close(model(IMAGES), expected, atol=1e-5, rtol=1e-5)
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, {f'backbone.{k}': v for k, v in model.state_dict().items()}, {})
    again = build(
        sizes='auto', init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    )
    again.init_weights()
    assert find_units(again).sizes == find_units(model).sizes
    assert torch.equal(again(IMAGES)[1], model(IMAGES)[1])
    by_kind = {
        kind: [unit.sizes[kind] for unit in find_units(model) if kind in unit.kinds]
        for kind in RATIOS
    }
    again = build(sizes=by_kind)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IMAGES)[1], model(IMAGES)[1])


@pytest.mark.parametrize('sizes', [None, 'auto'])
def test_weights_of_another_window_and_grid(sizes):
    """mmpretrain's own hook calls scipy.interpolate.interp2d, which is gone."""
    arguments = dict(use_abs_pos_embed=True)
    source = build(**arguments)
    if sizes:
        prune(source, criterion='magnitude', ratios=RATIOS)
    weights = source.state_dict()
    before = {key: value.clone() for key, value in weights.items()}
    other = build(**arguments, window_size=6, img_size=48, sizes=sizes)
    other.load_state_dict(dict(weights))
    table = weights['stages.0.blocks.1.attn.w_msa.relative_position_bias_table']
    expected = F.interpolate(table.T.reshape(1, -1, 7, 7), size=(11, 11), mode='bicubic')
    found = other.stages[0].blocks[1].attn.w_msa.relative_position_bias_table
    torch.testing.assert_close(found, expected.flatten(2)[0].T)
    grid = weights['absolute_pos_embed'].reshape(1, 6, 6, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(12, 12), mode='bicubic').flatten(2).transpose(1, 2)
    torch.testing.assert_close(other.absolute_pos_embed, expected)
    index = other.stages[0].blocks[1].attn.w_msa.relative_position_index
    assert torch.equal(
        index,
        build(window_size=6).state_dict()['stages.0.blocks.1.attn.w_msa.relative_position_index'],
    )
    assert all(torch.equal(value, weights[key]) for key, value in before.items())
    assert other(torch.randn(1, 3, 48, 48))[0].isfinite().all()


def test_a_table_of_no_square_window():
    weights = build().state_dict()
    name = 'stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
    weights[name] = torch.zeros(15, 2)
    with pytest.raises(ValueError, match='has 15 rows, which is no square window'):
        build().load_state_dict(weights)


def test_norms_of_a_detector_start_anew():
    classifier = build(out_indices=(1,)).state_dict()
    build().load_state_dict(classifier, strict=False)
    del classifier['norm1.weight']
    with pytest.raises(ValueError, match="lacks 1 of the weights .* first 'norm1.weight'"):
        build().load_state_dict(classifier, strict=False)


def test_checkpointing_and_modes():
    model = build(with_cp=True, frozen_stages=0, sizes=dict(heads=[1, 2, 3, 4]))
    assert model.train() is model and model.eval() is model
    model.train()
    sum(y.square().sum() for y in model(IMAGES)).backward()
    assert all(p.grad is not None for p in model.stages[1].parameters())
    assert not any(p.requires_grad for p in model.stages[0].parameters())
