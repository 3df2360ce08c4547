"""Positions and bias tables of another size, against mmpretrain's functions and classes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint
from mmpretrain.models import BEiTViT, SwinTransformer, VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mcf_mm.weights.checkpoint import read_state_dict
from mcf_mm.weights.files import save_state_dict
from mcf_mm.weights.resize import (
    find_grid,
    fit_bias_tables,
    fit_positions,
    note_grid,
    noted_grid,
    resize_bias_table,
    resize_positions,
)

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40)
SWIN = dict(embed_dims=16, depths=[1, 2], num_heads=[2, 4])


def positions(number: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, number, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize('extra', [0, 1, 2])
@pytest.mark.parametrize('grid, new', [((4, 4), (4, 8)), ((4, 8), (8, 4)), ((5, 3), (7, 2))])
def test_positions_are_those_of_mmpretrain(grid, new, extra):
    embed = positions(extra + grid[0] * grid[1])
    expected = resize_pos_embed(embed, grid, new, 'bicubic', extra)
    assert torch.equal(resize_positions(embed, grid, new, extra), expected)
    half = embed.half()
    assert resize_positions(half, grid, new, extra).dtype == torch.float16
    assert resize_positions(embed, grid, grid, extra) is embed


def test_tokens_behind_the_patches_and_several_layers():
    embed = torch.randn(3, 1 + 6 + 4, 16)
    resized = resize_positions(embed, (2, 3), (4, 6), extra=1, trailing=4)
    assert resized.shape == (3, 1 + 24 + 4, 16)
    assert torch.equal(resized[:, 0], embed[:, 0]) and torch.equal(resized[:, -4:], embed[:, -4:])
    for layer in range(3):
        alone = resize_positions(embed[layer : layer + 1, :7], (2, 3), (4, 6))
        torch.testing.assert_close(resized[layer : layer + 1, :25], alone)
    with pytest.raises(ValueError, match=r'have shape \(3, 11, 16\); 4 x 4 patches and 1 other'):
        resize_positions(embed, (4, 4), (2, 2))


def test_which_grid_a_checkpoint_has():
    assert find_grid(32, (8, 4), noted=(4, 8)) == (4, 8)
    assert find_grid(16, (8, 4)) == (4, 4)
    assert find_grid(16, (4, 4)) == (4, 4)
    assert find_grid(32, (8, 4), trusted=True) == (8, 4)
    assert find_grid(36, (4, 9), trusted=True) == (4, 9)
    # 4 x 9 patches, or 6 x 6?
    for patches, own in ((32, (8, 4)), (36, (4, 9)), (32, (4, 4)), (0, (4, 4))):
        message = (
            rf'pos of the checkpoint has {patches} patches, the network {own[0]} x .*not noted'
        )
        with pytest.raises(ValueError, match=message):
            find_grid(patches, own, name='pos')
    with pytest.raises(ValueError, match='has 33 patches, not the 4 x 8 that it notes'):
        find_grid(33, (4, 8), noted=(4, 8))


def test_grids_are_compared_not_counts():
    wide = positions(1 + 4 * 8)
    fitted = fit_positions(wide, (8, 4), noted=(4, 8))
    assert fitted.shape == wide.shape and not torch.allclose(fitted, wide)
    assert torch.equal(fitted, resize_pos_embed(wide, (4, 8), (8, 4)))
    assert fit_positions(wide, (4, 8), noted=(4, 8)) is wide
    with pytest.raises(ValueError, match='backbone.pos_embed of the checkpoint has 32 patches'):
        fit_positions(wide, (8, 4), name='backbone.pos_embed')


def test_a_class_token_that_is_not_asked_for():
    embed = positions(17)
    assert torch.equal(fit_positions(embed, (4, 4), extra=0), embed[:, 1:])
    fitted = fit_positions(positions(33), (4, 4), extra=0, noted=(4, 8))
    assert torch.equal(fitted, resize_pos_embed(positions(33)[:, 1:], (4, 8), (4, 4), 'bicubic', 0))


class NotingVisionTransformer(VisionTransformer):
    """As a class of mcf_mm may note its grid, and hear of it."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_grid(destination, self.patch_resolution, prefix[:-1])

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        key = prefix + 'pos_embed'
        grid = local_metadata.get('grid')
        state_dict[key] = fit_positions(state_dict[key], self.patch_resolution, noted=grid)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def vit(img_size) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = NotingVisionTransformer(arch=ARCH, patch_size=8, img_size=img_size)
    nn.init.normal_(model.backbone.pos_embed)
    return model


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_a_noted_grid_travels_in_files(ending, tmp_path):
    wide, tall = vit((32, 64)), vit((64, 32))
    path = tmp_path / f'wide.{ending}'
    if ending == 'pth':
        torch.save({'state_dict': wide.state_dict(), 'meta': {}}, path)
    else:
        save_state_dict(path, wide.state_dict(), {})
    assert noted_grid(read_state_dict(str(path)), 'backbone') == (4, 8)
    assert noted_grid(read_state_dict(str(path)), 'head') is None
    load_checkpoint(tall, str(path), logger='silent')
    expected = resize_pos_embed(wide.backbone.pos_embed, (4, 8), (8, 4))
    assert torch.equal(tall.backbone.pos_embed, expected)
    assert noted_grid(tall.state_dict(), 'backbone') == (8, 4)
    again = vit((32, 64))
    again.load_state_dict(wide.state_dict())
    assert torch.equal(again.backbone.pos_embed, wide.backbone.pos_embed)


def test_bias_tables_by_hand():
    table = torch.randn(7 * 7, 3)
    resized = resize_bias_table(table, 4, 8)
    images = table.T.reshape(1, 3, 7, 7)
    expected = F.interpolate(images, (15, 15), mode='bicubic').reshape(3, -1).T
    assert torch.equal(resized, expected)
    assert resize_bias_table(table, 4, 4) is table
    assert resize_bias_table(torch.randn(5 * 9, 2), (3, 5), (2, 2)).shape == (9, 2)
    with pytest.raises(ValueError, match=r'has shape \(49, 3\); a window of 5 needs at least \(81'):
        resize_bias_table(table, 5, 4)
    with pytest.raises(
        ValueError, match=r'a.relative_position_bias_table has 48 rows, which is no'
    ):
        name = 'relative_position_bias_table'
        fit_bias_tables({f'a.{name}': table[:48]}, {name: table}, 'a.')


def swin(window: int, size: int = 64) -> nn.Module:
    torch.manual_seed(window)
    model = SwinTransformer(arch=SWIN, img_size=size, window_size=window, out_indices=(1,))
    for name, parameter in model.named_parameters():
        if name.endswith('table'):
            nn.init.normal_(parameter)
    return model.eval() or model  # mmpretrain's returns None


def test_swin_takes_another_window():
    """mmpretrain's own hook would ask SciPy for interp2d; after ours it has nothing to do."""
    small, large = swin(4), swin(8)
    weights = {f'backbone.{name}': value for name, value in small.state_dict().items()}
    resized = fit_bias_tables(weights, large.state_dict(), 'backbone.')
    assert resized == [
        f'stages.{block}.attn.w_msa.relative_position_bias_table'
        for block in ('0.blocks.0', '1.blocks.0', '1.blocks.1')
    ]
    own = {name.removeprefix('backbone.'): value for name, value in weights.items()}
    index = large.stages[0].blocks[0].attn.w_msa.relative_position_index
    result = large.load_state_dict(own, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith('relative_position_index') for name in result.missing_keys)
    assert torch.equal(large.stages[0].blocks[0].attn.w_msa.relative_position_index, index)
    for name in resized:
        expected = resize_bias_table(small.state_dict()[name], 4, 8)
        assert torch.equal(large.state_dict()[name], expected)
    assert large(torch.randn(1, 3, 64, 64))[0].shape == (1, 32, 8, 8)


def test_nothing_is_resized_without_need():
    model = swin(4)
    weights = copy.copy(model.state_dict())
    assert fit_bias_tables(weights, model.state_dict()) == []
    assert all(weights[name] is value for name, value in weights.items())
    assert len(weights) == len(model.state_dict())


def test_beit_keeps_the_rows_of_its_class_token():
    def beit(size: int) -> nn.Module:
        torch.manual_seed(size)
        model = BEiTViT(arch=ARCH, img_size=size, patch_size=8)
        for layer in model.layers:
            nn.init.normal_(layer.attn.relative_position_bias_table)
        return model

    small, large = beit(32), beit(64)
    weights = dict(small.state_dict())
    assert len(fit_bias_tables(weights, large.state_dict())) == 2
    large.load_state_dict(weights, strict=False)
    before, after = (m.layers[1].attn.relative_position_bias_table for m in (small, large))
    assert len(before) == 7 * 7 + 3 and len(after) == 15 * 15 + 3
    assert torch.equal(after[-3:], before[-3:])
    assert torch.equal(after, resize_bias_table(before, 4, 8))
