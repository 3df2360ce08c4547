"""The simple feature pyramid, alone and behind a plain vision transformer."""

import pytest
import torch

from mcf_mm.models import SimpleFeaturePyramid, SlimVisionTransformer
from mcf_mm.registry import MODELS

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def test_levels_and_parameters():
    neck = MODELS.build(dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=384, num_outs=6))
    neck.init_weights()
    levels = neck([torch.randn(2, 384, 6, 10)])
    sides = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    assert [tuple(level.shape) for level in levels] == [(2, 256, *side) for side in sides]
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])
    # By hand: deconvolutions and the norm between two of them; then, at widths 96, 192, 384 and
    # 384, convolutions without bias and two norms.
    up = 2 * (384 * 192 * 4 + 192) + 2 * 192 + (192 * 96 * 4 + 96)
    convs = 256 * (96 + 192 + 384 + 384) + 4 * (256 * 256 * 9 + 4 * 256)
    assert sum(parameter.numel() for parameter in neck.parameters()) == up + convs
    sum(level.square().sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


@pytest.mark.parametrize('start_level, num_outs', [(1, 5), (2, 2), (3, 3)])
def test_levels_from_a_later_one_on(start_level, num_outs):
    """They are those of the whole pyramid, and nothing is left that no level uses."""
    whole = SimpleFeaturePyramid(in_channels=32, out_channels=8, num_outs=start_level + num_outs)
    neck = SimpleFeaturePyramid(
        in_channels=32, out_channels=8, num_outs=num_outs, start_level=start_level
    )
    for name in ('resizes', 'convs'):
        later = getattr(whole, name)[start_level:]
        getattr(neck, name).load_state_dict(later.state_dict())
    features = torch.randn(1, 32, 8, 6)
    levels = neck([features])
    assert len(levels) == num_outs
    for level, same in zip(levels, whole([features])[start_level:], strict=True):
        assert torch.equal(level, same)
    sum(level.square().sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_levels_keep_the_type_of_the_weights():
    """mmdet's RoI extractors would round regions to bfloat16, and cannot train in it on CPUs."""
    neck = SimpleFeaturePyramid(in_channels=32, out_channels=8)
    with torch.autocast('cpu', torch.bfloat16):
        assert neck.convs[0](neck.resizes[0](torch.ones(1, 32, 4, 4))).dtype == torch.bfloat16
        levels = neck([torch.ones(1, 32, 4, 4)])
    assert {level.dtype for level in levels} == {torch.float32}
    levels = neck.to(torch.bfloat16)([torch.ones(1, 32, 4, 4, dtype=torch.bfloat16)])
    assert {level.dtype for level in levels} == {torch.bfloat16}


def test_levels_are_normalised_channelwise():
    neck = SimpleFeaturePyramid(in_channels=8, out_channels=16)
    for level in neck([torch.randn(1, 8, 4, 4)]):
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), atol=1e-5, rtol=0)
        assert (level.var(1, correction=0) < 1.001).all()


@pytest.mark.parametrize('height, width', [(64, 96), (96, 64), (70, 150), (33, 47)])
def test_behind_a_plain_transformer_at_any_image_size(height, width):
    backbone = SlimVisionTransformer(arch=ARCH, img_size=48, out_type='featmap')
    backbone.init_weights()
    neck = SimpleFeaturePyramid(in_channels=backbone.out_channels[0], out_channels=8)
    image = torch.randn(2, 3, height, width)
    rows, columns = -(-height // 16), -(-width // 16)
    (features,) = backbone(image)
    assert features.shape == (2, 32, rows, columns)
    levels = neck((features,))
    assert [tuple(level.shape[2:]) for level in levels[:3]] == [
        (rows * scale, columns * scale) for scale in (4, 2, 1)
    ]
    # Positions are resized to the grid: each row of a grey image has features of its own.
    (features,) = backbone(torch.zeros(1, 3, height, width))
    flat = features.flatten(2)[0].T
    assert len(torch.unique(flat, dim=0)) == rows * columns


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match='in_channels must be a multiple of 4.*got 30'):
        SimpleFeaturePyramid(in_channels=30)
    with pytest.raises(ValueError, match='num_outs must be at least 4 with start_level=0, got 3'):
        SimpleFeaturePyramid(in_channels=32, num_outs=3)
    with pytest.raises(ValueError, match='num_outs must be at least 3 with start_level=1, got 2'):
        SimpleFeaturePyramid(in_channels=32, num_outs=2, start_level=1)
    with pytest.raises(ValueError, match='start_level must be from 0 to 3, got 4'):
        SimpleFeaturePyramid(in_channels=32, start_level=4)


@pytest.mark.parametrize(
    'inputs', [[(1, 384, 2, 2)], [(1, 192, 2, 2)] * 2, [(1, 192)]], ids=['width', 'two', 'token']
)
def test_inputs_that_do_not_fit(inputs):
    neck = SimpleFeaturePyramid(in_channels=192)
    with pytest.raises(ValueError) as error:
        neck([torch.zeros(shape) for shape in inputs])
    message = str(error.value)
    assert 'takes one map (B, 192, H, W)' in message and f'the backbone gives {inputs}' in message
