"""T2T-ViT computes what its publication does, dense and slim."""

import copy

import pytest
import torch
from mmpretrain.models import T2T_ViT
from torch import Tensor, nn

from mcf_mm.models import SlimT2T_ViT
from mcf_mm.pruning import cut, find_units, mask, prune

SMALL = dict(
    img_size=32,
    embed_dims=24,
    t2t_cfg=dict(token_dims=8, use_performer=False),
    num_layers=2,
    layer_cfgs=dict(num_heads=3, feedforward_channels=48),
)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(**kwargs) -> SlimT2T_ViT:
    torch.manual_seed(0)
    model = SlimT2T_ViT(**{**SMALL, **kwargs})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


class Published(nn.Module):
    """Attention of yitu-opensource/T2T-ViT, of a block and inside tokens-to-token."""

    def __init__(self, attention: nn.Module, width: int, heads: int, shortcut: bool):
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.shortcut = heads, shortcut
        self.scale = (width // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))
        return v.squeeze(1) + x if self.shortcut else x


def published(model: SlimT2T_ViT, blocks: bool = True) -> SlimT2T_ViT:
    model = copy.deepcopy(model)
    module = model.tokens_to_token
    module.attention1.attn = Published(module.attention1.attn, 3 * 7 * 7, 1, True)
    module.attention2.attn = Published(module.attention2.attn, 8 * 3 * 3, 1, True)
    for layer in model.encoder if blocks else ():
        layer.attn = Published(layer.attn, 24, 3, False)
    return model


def test_it_is_the_published_network():
    model = build()
    torch.testing.assert_close(model(IMAGES), published(model)(IMAGES), atol=1e-5, rtol=1e-5)


def test_mmpretrain_computes_something_else_from_the_same_weights():
    ours, theirs = build(), T2T_ViT(**SMALL)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.train(False)
    assert (ours(IMAGES)[0] - theirs(IMAGES)[0]).abs().max() > 1e-2


def test_a_scale_of_the_config():
    cfgs = dict(SMALL['layer_cfgs'], qk_scale=0.5)
    assert [layer.attn.scaling for layer in build(layer_cfgs=cfgs).encoder] == [0.5, 0.5]
    cfgs = [cfgs, SMALL['layer_cfgs']]
    assert [layer.attn.scaling for layer in build(layer_cfgs=cfgs).encoder] == [0.5, 8**-0.5]


def test_pruned_it_is_the_masked_one():
    model = build()
    units = find_units(model)
    assert [unit.name for unit in units.attentions] == ['encoder.0.attn', 'encoder.1.attn']
    assert set(units.left_out) == {f'tokens_to_token.attention{i}.attn' for i in (1, 2)}
    assert [unit.name for unit in units][:2] == [
        f'tokens_to_token.attention{i}.ffn' for i in (1, 2)
    ]
    ratios = dict(heads=0.3, qk=0.3, v=0.4, hidden=0.3, inputs=0.2)
    structure = prune(copy.deepcopy(model), criterion='magnitude', ratios=ratios)
    with mask(units, structure):
        (expected,) = model(IMAGES)
    cut(model, structure)
    torch.testing.assert_close(model(IMAGES)[0], expected, atol=1e-5, rtol=1e-5)
    for sizes in ('auto', find_units(model).sizes):
        again = build(sizes=sizes)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(IMAGES)[0], model(IMAGES)[0])
    torch.testing.assert_close(
        published(model, blocks=False)(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
def test_outputs_and_gradients(out_type):
    model = build(out_type=out_type, out_indices=[0, 1], sizes=dict(heads=2)).train()
    assert model.out_channels == [24, 24]
    outputs = model(torch.randn(1, 3, 48, 48))
    assert [y.shape[1] for y in outputs] == model.out_channels
    outputs[1].square().sum().backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None}
    assert not missing


def test_positions_of_another_grid_are_resized():
    other = build(img_size=64, sizes='auto')
    other.load_state_dict(build(sizes=dict(heads=2)).state_dict())
    assert other.pos_embed.shape == (1, 17, 24)
