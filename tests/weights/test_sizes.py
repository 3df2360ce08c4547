"""Sizes of units from weights alone."""

import pytest
import timm
import torch

from mcf_mm.pruning import find_units, prune
from mcf_mm.weights.sizes import sizes_in

RATIOS = dict(heads=0.3, qk=0.4, v=0.3, hidden=0.3, inputs=0.2)


def build(name: str = 'vit_tiny_patch16_224', **kwargs) -> torch.nn.Module:
    return timm.create_model(
        name, **{**dict(img_size=32, embed_dim=24, depth=2, num_heads=3), **kwargs}
    )


def swin() -> torch.nn.Module:
    return build(
        'swin_tiny_patch4_window7_224', depths=(1, 1), num_heads=(3, 6), window_size=4, depth=None
    )


@pytest.mark.parametrize('network', [build, swin])
@pytest.mark.parametrize('prefix', ['', 'backbone', 'backbone.'])
def test_dense_and_pruned(network, prefix):
    model, dense = network(), network()
    start = 'backbone.' if prefix else ''
    for pruned in (False, True):
        if pruned:
            prune(model, criterion='magnitude', ratios=RATIOS)
        weights = {start + key: value for key, value in model.state_dict().items()}
        for units in (find_units(dense), find_units(model)):
            assert sizes_in(weights, units, prefix) == find_units(model).sizes


def test_what_contradicts_itself():
    model = build()
    units = find_units(model)
    dense = model.state_dict()
    prune(model, criterion='magnitude', ratios=RATIOS)
    weights = model.state_dict()
    assert find_units(model).sizes['blocks.0.attn'] == dict(heads=2, qk=4, v=5)

    def message(**changes) -> str:
        changed = {**weights, **{f'blocks.0.{k.replace("_", ".")}': v for k, v in changes.items()}}
        changed = {key: value for key, value in changed.items() if value is not None}
        with pytest.raises(ValueError) as error:
            sizes_in(changed, units, source='net.pth')
        return str(error.value)

    assert message(attn_sizes=None) == (
        'net.pth: blocks.0.attn: the dense network has 3 heads of 8 q/k and 8 v channels, which '
        'are [72] rows of qkv and 24 columns of proj; the weights have [26] and 10. A pruned '
        "attention needs the buffer 'blocks.0.attn.sizes' beside its weights; if it is dense, "
        'build the network with its width'
    )
    assert message(attn_sizes=torch.tensor([2, 4, 6])).startswith(
        'net.pth: blocks.0.attn: its buffer sizes says 2 heads of 4 q/k and 6 v channels, which '
        'are [28] rows of qkv and 12 columns of proj; the weights have [26] and 10. One'
    )
    assert 'must be three positive numbers' in message(attn_sizes=torch.tensor([2, 4]))
    assert 'got [2, 0, 5]' in message(attn_sizes=torch.tensor([2, 0, 5]))
    assert "net.pth has no 'blocks.0.attn.qkv.weight'" in message(attn_qkv_weight=None)
    told = message(mlp_fc2_weight=dense['blocks.0.mlp.fc2.weight'])
    assert 'blocks.0.mlp: fc1.weight has 67 rows and fc2.weight 96 columns' in told
    # What mcf_mm 0.1 called row selection.
    for key in ('mlp_fc1_inputs', 'mlp_fc2_inputs'):
        told = message(**{key: torch.zeros(67, 19, dtype=torch.int64)})
        assert 'blocks.0.mlp: the rows of a layer have inputs of their own' in told
