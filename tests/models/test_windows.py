"""Attention inside windows: equal to global attention where it must be, and to a plain loop."""

import copy
import pickle

import pytest
import torch

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.models import SlimVisionTransformer, YOLOSVisionTransformer
from mcf_mm.models.backbones.windows import WindowedAttention
from mcf_mm.pruning import (
    AttentionObserver,
    calibrate,
    find_units,
    measure_costs,
    prune,
    resize,
)
from mcf_mm.pruning.flop_counter import flop_counter
from mcf_mm.weights.checkpoint import put_weights

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=48)
SIZES = dict(inputs=20, hidden=30, heads=[1, 2, 2, 1], qk=12, v=9)


def backbone(**kwargs) -> SlimVisionTransformer:
    """A small one with all its weights random, the biases too."""
    torch.manual_seed(0)
    model = SlimVisionTransformer(
        arch=ARCH, img_size=64, patch_size=8, out_type='featmap', **kwargs
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.train(False)
    return model


def plain(attn: WindowedAttention, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What the docstring says, one query at a time, ``(N, C)``; extra tokens are one."""
    heads, qk, v = attn.slim
    query, key, value = attn.qkv(tokens).split((heads * qk, heads * qk, heads * v), 1)
    side = [min(attn.window_size, all_) for all_ in grid]
    window = [
        (row // side[0], column // side[1]) for row in range(grid[0]) for column in range(grid[1])
    ]
    rows = []
    for place in range(len(tokens)):
        keys = [0] + [n + 1 for n, own in enumerate(window) if own == window[place - 1]]
        if place == 0:
            keys = list(range(len(tokens)))
        heads_out = []
        for head in range(heads):
            own = slice(head * qk, (head + 1) * qk)
            scores = key[keys][:, own] @ query[place, own] * attn.scaling
            heads_out.append(scores.softmax(0) @ value[keys][:, head * v : (head + 1) * v])
        rows.append(torch.cat(heads_out))
    return attn.proj(torch.stack(rows))


@torch.no_grad()
@pytest.mark.parametrize('sizes', [None, SIZES], ids=['dense', 'slim'])
@pytest.mark.parametrize('grid', [(6, 6), (5, 7), (2, 8), (3, 3)])
def test_equals_a_plain_loop(sizes, grid):
    model = backbone(window_size=3, global_blocks=(), sizes=sizes)
    attn = model.layers[2].attn
    assert isinstance(attn, WindowedAttention)
    attn.grid = grid
    tokens = torch.randn(2, 1 + grid[0] * grid[1], 32)
    expected = torch.stack([plain(attn, image, grid) for image in tokens])
    torch.testing.assert_close(attn(tokens), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('sizes', [None, SIZES], ids=['dense', 'slim'])
def test_where_it_is_global(sizes):
    images = torch.randn(2, 3, 40, 72)
    expected = backbone(sizes=sizes)(images)[0]
    whole = backbone(sizes=sizes, window_size=2, global_blocks=range(4))
    assert torch.equal(whole(images)[0], expected)
    assert not any(isinstance(layer.attn, WindowedAttention) for layer in whole.layers)
    # The map is 5 x 9 patches.
    for side in (9, 14):
        covering = backbone(sizes=sizes, window_size=side, global_blocks=())
        torch.testing.assert_close(covering(images)[0], expected, atol=1e-4, rtol=1e-4)
    inside = backbone(sizes=sizes, window_size=3, global_blocks=())
    assert not torch.allclose(inside(images)[0], expected, atol=1e-2)


@torch.no_grad()
def test_windows_do_not_see_each_other_and_global_blocks_do():
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :8, :8] += 1  # the first patch
    # Without class token, which would carry it from window to window.
    for blocks, seen in (((), 2), ((1,), 8)):
        model = backbone(window_size=2, global_blocks=blocks, with_cls_token=False)
        moved = (model(images)[0] != model(changed)[0]).any(1)[0]  # (8, 8)
        assert moved[:seen, :seen].all() and moved.sum() == seen**2


def test_default_blocks():
    kinds = [isinstance(layer.attn, WindowedAttention) for layer in backbone(window_size=2).layers]
    assert kinds == [False] * 4
    model = SlimVisionTransformer('deit-tiny', out_type='featmap', window_size=14)
    assert model.global_blocks == (2, 5, 8, 11)
    kinds = [isinstance(layer.attn, WindowedAttention) for layer in model.layers]
    assert kinds == [True, True, False] * 4
    dense = SlimVisionTransformer('deit-tiny', out_type='featmap').state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in dense.items()
    }


def test_copies_have_a_grid_of_their_own_and_gradients_flow():
    model = backbone(window_size=3, global_blocks=(3,))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(torch.ones(1, 3, 64, 64))[0], model(torch.ones(1, 3, 64, 64))[0])
        other(torch.ones(1, 3, 32, 48))
        assert model.layers[0].attn.grid == (8, 8) and other.layers[0].attn.grid == (4, 6)
    model(torch.randn(2, 3, 56, 64))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('sizes', [None, SIZES], ids=['dense', 'slim'])
def test_costs(sizes):
    """Both counters give the products that windows leave, by hand."""
    model = backbone(window_size=3, global_blocks=(1,), sizes=sizes)
    shape, tokens = (64, 40), 1 + 8 * 5
    windows = 3 * 2 * 9 * (9 + 1) + tokens  # pairs: of patches, and of the class token
    pairs = [windows, tokens**2, windows, windows]
    expected = 0
    for layer, number in zip(model.layers, pairs, strict=True):
        heads, qk, v = layer.attn.read_sizes(layer.attn) if sizes else (2, 16, 16)
        expected += number * heads * (qk + v)
        expected += tokens * 32 * heads * (2 * qk + 2 * v)
    counted = count_complexity(model, shape)
    assert counted.parts['attention'].macs == expected
    costs = measure_costs(model, lambda network: network(torch.zeros(1, 3, *shape)))
    assert costs.of({})['macs'] == counted.macs
    smaller = {unit.name: {kind: 1 for kind in unit.kinds} for unit in find_units(model)}
    counter = flop_counter()
    for unit in find_units(small := copy.deepcopy(model)):
        resize(unit, smaller[unit.name])
    with counter:
        small(torch.zeros(1, 3, *shape))
    assert costs.of(smaller)['macs'] == counter.get_total_flops() // 2


def test_pruning():
    """Calibration sees the tokens of an image; what is cut loads into a slim backbone."""
    model = backbone(window_size=3, global_blocks=(3,))
    images = [torch.randn(4, 3, 64, 40) for _ in range(2)]
    attentions = [unit for unit in find_units(model) if unit.name.endswith('attn')]
    with pytest.raises(ValueError, match=r'layers\.0\.attn attends inside windows'):
        AttentionObserver(attentions[0])
    calibrate(model, images, [AttentionObserver(attentions[3])])
    prune(model, images, criterion='magnitude', ratios=dict(heads=0.5, qk=0.25, hidden=0.4))
    assert model.layers[0].attn.slim == (1, 12, 16)
    assert isinstance(model.layers[0].attn, WindowedAttention)
    again = backbone(window_size=3, global_blocks=(3,), sizes='auto')
    put_weights(again, model.state_dict(), 'slim')
    assert torch.equal(again(images[0])[0], model(images[0])[0])


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(window_size=0), 'window_size must be a number of patches from 1, or None, got 0'),
        (dict(window_size=(7, 7)), r'window_size must be .* got \(7, 7\)'),
        (dict(global_blocks=(1,)), r'global_blocks=\(1,\) .* give window_size too'),
        (dict(window_size=7, global_blocks=(1, 4)), 'numbers from 0 to 3, got 4'),
        (dict(window_size=7, global_blocks=(-1,)), 'numbers from 0 to 3, got -1'),
    ],
)
def test_arguments_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        backbone(**settings)


def test_networks_without_a_map():
    with pytest.raises(ValueError, match="window_size=7 needs out_type='featmap', got 'cls_token'"):
        SlimVisionTransformer(arch=ARCH, window_size=7)
    with pytest.raises(ValueError, match="window_size=7 needs out_type='featmap', got 'raw'"):
        YOLOSVisionTransformer(arch=ARCH, img_size=64, window_size=7)


def test_attention_without_its_backbone():
    attn = backbone(window_size=3, global_blocks=()).layers[0].attn
    with pytest.raises(ValueError, match='got 10 tokens for a grid of None'):
        attn(torch.zeros(1, 10, 32))
    attn.grid = (3, 3)
    with pytest.raises(ValueError, match='takes no mask'):
        attn(torch.zeros(1, 10, 32), torch.ones(1, 1, 1, 10, dtype=torch.bool))
