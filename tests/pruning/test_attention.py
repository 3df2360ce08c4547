"""Attention of any sizes is the plain formula, though it is padded for fused kernels."""

import itertools

import pytest
import timm
import torch
import torch.nn.functional as F
import zoo
from mmpretrain.models.utils import MultiheadAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from mcf_mm.pruning import find_units, prune
from mcf_mm.pruning.attention import SlimAttention

WIDTH, TOKENS, IMAGES = 24, 7, 3
#: Heads, q/k and v channels of each head: equal, unlike, multiples of 8 and not, more v than q/k.
SIZES = [(3, 8, 8), (3, 5, 8), (3, 8, 5), (2, 1, 7), (1, 3, 11), (4, 17, 2), (2, 16, 8), (3, 9, 9)]


def slim(module: nn.Module, sizes: tuple[int, int, int]) -> nn.Module:
    """An attention whose weights have been cut to some sizes; random ones, double."""
    heads, qk, v = sizes
    layout = SlimAttention.layout_of(module)
    module = module.double()
    shapes = {'qkv': (heads * (2 * qk + v), WIDTH), 'proj': (WIDTH, heads * v)}
    for name, shape in shapes.items():
        layer = getattr(module, name)
        layer.weight = nn.Parameter(torch.randn(shape, dtype=torch.double))
        layer.bias = nn.Parameter(torch.randn(shape[0], dtype=torch.double))
    layout.adopt(module, sizes)
    return module.eval()


def explicit(module: nn.Module, x: Tensor, scale: float, added: Tensor | float = 0.0) -> Tensor:
    """softmax(q k^T * scale) v, head after head, then proj."""
    heads, qk, v = module.slim
    weight, bias = module.qkv.weight, module.qkv.bias
    parts = []
    for head in range(heads):
        query, key, value = (
            x @ weight[rows].T + bias[rows]
            for rows in (
                slice(head * qk, (head + 1) * qk),
                slice((heads + head) * qk, (heads + head + 1) * qk),
                slice(2 * heads * qk + head * v, 2 * heads * qk + (head + 1) * v),
            )
        )
        bias_of_head = added if isinstance(added, float) else added[:, head % added.shape[1]]
        scores = torch.einsum('bnc,bmc->bnm', query, key) * scale + bias_of_head
        shares = (scores - scores.amax(-1, keepdim=True)).exp()
        parts.append(shares / shares.sum(-1, keepdim=True) @ value)
    return torch.cat(parts, -1) @ module.proj.weight.T + module.proj.bias


def tokens() -> Tensor:
    return torch.randn(IMAGES, TOKENS, WIDTH, dtype=torch.double)


def same(found: Tensor, expected: Tensor, inputs: list[Tensor], rtol: float = 1e-9) -> None:
    """Equal values, and equal gradients with respect to the inputs."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-10)
    direction = torch.randn_like(expected)
    gradients = (torch.autograd.grad(out, inputs, direction) for out in (found, expected))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=rtol, atol=1e-10)


def lone(x: Tensor, module: nn.Module) -> list[Tensor]:
    return [x.requires_grad_(), *(value for _, value in sorted(module.named_parameters()))]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('masked', [None, 'added', 'bool'])
def test_attention_of_timm_is_the_plain_formula(sizes, masked):
    module = slim(Attention(WIDTH, 3, qkv_bias=True), sizes)
    x = tokens()
    mask, added = None, 0.0
    if masked == 'added':
        mask = added = torch.randn(IMAGES, 1, TOKENS, TOKENS, dtype=torch.double)
    elif masked == 'bool':
        mask = torch.rand(IMAGES, 1, TOKENS, TOKENS) < 0.7
        mask |= torch.eye(TOKENS, dtype=torch.bool)
        added = torch.zeros(mask.shape, dtype=torch.double).masked_fill(~mask, -torch.inf)
    expected = explicit(module, x.requires_grad_(), 8**-0.5, added)  # that of the dense head
    same(module(x, attn_mask=mask), expected, lone(x, module))


@pytest.mark.parametrize('sizes', SIZES[1:4], ids=str)
def test_later_tokens_are_hidden_from_earlier_ones(sizes):
    module = slim(Attention(WIDTH, 3, qkv_bias=True), sizes)
    x = tokens()
    added = torch.full((TOKENS, TOKENS), -torch.inf, dtype=torch.double).triu(1)[None, None]
    expected = explicit(module, x.requires_grad_(), 8**-0.5, added)
    same(module(x, is_causal=True), expected, lone(x, module))


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('qk_scale', [None, 3.0])
def test_attention_of_mmpretrain_is_the_plain_formula(sizes, qk_scale):
    module = slim(MultiheadAttention(WIDTH, 3, qk_scale=qk_scale), sizes)
    x = tokens()
    # With any qk_scale mmpretrain divides by the usual one.
    scale = 8**-0.5 if qk_scale is None else 8**0.5
    mask = torch.ones(IMAGES, 1, 1, TOKENS, dtype=torch.bool)
    mask[1, ..., 3:] = False
    for own in (None, mask):
        added = 0.0
        if own is not None:
            added = torch.zeros(own.shape, dtype=torch.double).masked_fill(~own, -torch.inf)
        expected = explicit(module, x.requires_grad_(), scale, added)
        same(module(x, own), expected, lone(x, module))


@pytest.mark.parametrize('sizes', [(3, 8, 8), (3, 5, 8), (2, 3, 7), (1, 9, 2)], ids=str)
@pytest.mark.parametrize('shifted', [False, True])
def test_attention_inside_windows_adds_the_bias_of_each_head(sizes, shifted):
    side, windows = 2, 3
    module = timm.models.swin_transformer.WindowAttention(WIDTH, 3, window_size=side)
    module = slim(module, sizes)
    table = torch.randn((2 * side - 1) ** 2, sizes[0], dtype=torch.double)
    module.relative_position_bias_table = nn.Parameter(table)
    x = torch.randn(2 * windows, side**2, WIDTH, dtype=torch.double, requires_grad=True)
    added = torch.zeros(len(x), sizes[0], side**2, side**2, dtype=torch.double)
    places = list(itertools.product(range(side), repeat=2))
    table = module.relative_position_bias_table
    rows = []
    for (y, z), (a, b) in itertools.product(places, repeat=2):
        rows.append((y - a + side - 1) * (2 * side - 1) + z - b + side - 1)
    added = added + table[rows].T.unflatten(1, (side**2, side**2))
    mask = None
    if shifted:
        mask = torch.where(torch.rand(windows, side**2, side**2) < 0.3, -100.0, 0.0).double()
        added = added + mask.repeat(2, 1, 1)[:, None]
    expected = explicit(module, x, 8**-0.5, added)
    same(module(x, mask), expected, lone(x, module))


@pytest.mark.parametrize('sizes', [(3, 8, 3), (2, 8, 12)], ids=str)
def test_normalised_queries_and_keys_are_normalised_before_they_are_padded(sizes):
    module = Attention(WIDTH, 3, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)
    module = slim(module, sizes)
    for norm in (module.q_norm, module.k_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = tokens().requires_grad_()
    heads, qk, v = sizes
    parts = module.qkv(x).split((heads * qk, heads * qk, heads * v), -1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    query, key = module.q_norm(query), module.k_norm(key)
    shares = (query @ key.mT * 8**-0.5).softmax(-1)
    expected = module.proj((shares @ value).transpose(1, 2).flatten(2))
    same(module(x), expected, lone(x, module))


def test_dropout_acts_on_the_shares_in_training_alone():
    module = slim(Attention(WIDTH, 3, qkv_bias=True, attn_drop=0.5), (3, 5, 8))
    x = tokens()
    expected = explicit(module, x, 8**-0.5)
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-10)
    first, second = module.train()(x), module(x)
    assert not torch.equal(first, second) and not torch.allclose(first, expected)
    # Its mean is that without dropout.
    many = torch.stack([module(x[:1])[0] for _ in range(3000)])
    many, expected = many.detach(), expected.detach()
    deviation = many.std(0) / len(many) ** 0.5
    assert float(((many.mean(0) - expected[0]).abs() / deviation).max()) < 5


@pytest.mark.parametrize('name', ['timm ViT', 'mmpretrain VisionTransformer', 'Hugging Face ViT'])
def test_what_is_exported_without_padding_gives_the_same(name, monkeypatch):
    """Recorded forward passes have no padding, which other runtimes need not."""
    model = zoo.network(name).double()
    x = zoo.images(name).double()
    prune(model, criterion='magnitude', ratios=dict(qk=0.4, v=0.2))
    widths = []

    def noting(query, key, value, **more):
        widths.append([part.shape[-1] for part in (query, key, value)])
        return attend(query, key, value, **more)

    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'scaled_dot_product_attention', noting)
    with torch.no_grad():
        padded = zoo.outputs(model, x)
        assert widths == [[8, 8, 8]] * 2
        monkeypatch.setattr('mcf_mm.pruning.attention.is_recorded', lambda x: True)
        plain = zoo.outputs(model, x)
    assert widths[2:] == [[4, 4, 6]] * 2
    assert all(unit.sizes == dict(heads=3, qk=4, v=6) for unit in find_units(model).attentions)
    torch.testing.assert_close(padded, plain, rtol=1e-10, atol=1e-10)
