"""Compensation: what the dropped elements carried is folded into what stays."""

import copy
import re

import pytest
import torch
from torch import nn

from mcf_mm.pruning import Structure, calibrate, compensate, compensation, cut, find_units, prune
from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.compensation import COMPENSATIONS, compensation_observers
from mcf_mm.pruning.criteria import OBS
from mcf_mm.pruning.observers import Activations


def error(model, dense, images) -> float:
    """Mean square error, as a share of the mean square of the dense output."""
    with torch.no_grad():
        expected = dense(images)
        return float((model(images) - expected).square().mean() / expected.square().mean())


def compensated(model, batches, structure, kind):
    """A copy of ``model``, compensated and cut."""
    model = copy.deepcopy(model)
    units = find_units(model)
    kinds = {name: dict.fromkeys(own, 1) for name, own in structure.items()}
    observers = compensation_observers(units, kinds, kind)
    seen = calibrate(model, batches, observers) if observers else Seen({})
    compensate(units, structure, seen, kind)
    cut(model, structure)
    return model


def test_compensation_brings_the_output_closer(network, batches):
    dense = copy.deepcopy(network)
    errors = {}
    for kind in ('none', 'mean', 'least_squares'):
        slim = copy.deepcopy(network)
        prune(slim, batches, ratios=dict(inputs=0.25, hidden=0.5), compensation=kind)
        errors[kind] = error(slim, dense, batches[0])
    assert errors['least_squares'] < errors['mean'] < errors['none']


def hidden_units(model):
    """Hidden units 12 to 19 of the first FFN are sums of others and a constant."""
    ffn = model.blocks[0].mlp
    ffn.act = nn.Identity()
    mix = torch.randn(8, 12, dtype=torch.double)
    ffn.fc1.weight[12:] = mix @ ffn.fc1.weight[:12]
    return {'blocks.0.mlp': dict(hidden=torch.arange(12))}


def inputs(model):
    """The channels of a layer norm add up to zero, so one of them is the sum of the others."""
    model.blocks[0].norm.weight.fill_(1)
    return {'blocks.0.mlp': dict(inputs=torch.arange(11))}


def value_channels(model):
    """In each head the last two value channels are sums of the first two and a constant."""
    weight = model.blocks[0].attn.qkv.weight[24:].view(3, 4, 12)
    weight[:, 2:] = torch.randn(3, 2, 2, dtype=torch.double) @ weight[:, :2]
    return {'blocks.0.attn': dict(v=torch.tensor([0, 1, 4, 5, 8, 9]))}


def heads(model):
    """The second head attends as the first does, and its values are sums of those."""
    qkv = model.blocks[0].attn.qkv
    for part in (0, 12):
        for parameter in (qkv.weight, qkv.bias):
            parameter[part + 4 : part + 8] = parameter[part : part + 4]
    qkv.weight[28:32] = torch.randn(4, 4, dtype=torch.double) @ qkv.weight[24:28]
    return {'blocks.0.attn': dict(heads=torch.tensor([0, 2]))}


def heads_and_value_channels(model):
    """Both of it in one cut."""
    heads(model)
    kept = torch.tensor([0, 1, 8, 9])
    value_channels(model)
    model.blocks[0].attn.qkv.weight[28:32] = (
        torch.randn(4, 2, dtype=torch.double) @ (model.blocks[0].attn.qkv.weight[24:26])
    )
    return {'blocks.0.attn': dict(heads=torch.tensor([0, 2]), v=kept)}


REDUNDANT = (hidden_units, inputs, value_channels, heads, heads_and_value_channels)


@pytest.mark.parametrize('make', REDUNDANT)
def test_least_squares_loses_nothing_of_what_is_a_sum_of_others(
    transformer, batches, make, monkeypatch
):
    # The ridge keeps ill-posed cases in hand and costs some accuracy in well-posed ones.
    monkeypatch.setattr(compensation, 'RIDGE', 1e-12)
    torch.manual_seed(3)
    with torch.no_grad():
        structure = Structure(make(transformer))
    images = [batch.double() for batch in batches]
    fresh = torch.randn(8, 6, 12, dtype=torch.double)  # not those of calibration
    errors = {
        kind: error(compensated(transformer, images, structure, kind), transformer, fresh)
        for kind in ('none', 'mean', 'least_squares')
    }
    assert errors['least_squares'] < 1e-8
    assert min(errors['none'], errors['mean']) > 1e-3


def test_the_mean_loses_nothing_of_what_is_constant(transformer, batches):
    with torch.no_grad():
        transformer.blocks[0].mlp.fc1.weight[12:] = 0
        transformer.blocks[0].attn.qkv.weight[24:26] = 0
    structure = Structure(
        {
            'blocks.0.mlp': dict(hidden=torch.arange(12)),
            'blocks.0.attn': dict(v=torch.tensor([2, 3, 6, 7, 10, 11])),
        }
    )
    images = [batch.double() for batch in batches]
    ffn = Structure({'blocks.0.mlp': structure['blocks.0.mlp']})
    assert error(compensated(transformer, images, ffn, 'mean'), transformer, images[0]) < 1e-12
    assert error(compensated(transformer, images, ffn, 'none'), transformer, images[0]) > 1e-4
    # Of the value channels those of the first head are constant, those of the others vary.
    slim = compensated(transformer, images, structure, 'mean')
    observers = compensation_observers(
        find_units(transformer), {'blocks.0.attn': dict(v=2)}, 'mean'
    )
    seen = calibrate(transformer, images, observers)
    proj = transformer.blocks[0].attn.proj
    dropped = [0, 1, 4, 5, 8, 9]
    mean = seen['blocks.0.attn', 'v'].mean.double()
    expected = proj.bias + proj.weight[:, dropped] @ mean[dropped]
    torch.testing.assert_close(slim.blocks[0].attn.proj.bias, expected)


def test_dropped_query_and_key_channels_change_nothing_else(transformer, batches):
    images = [batch.double() for batch in batches]
    kept = torch.tensor([0, 1, 4, 5, 8, 9])
    structure = Structure({'blocks.0.attn': dict(heads=torch.arange(3), qk=kept)})
    plain = compensated(transformer, images, structure, 'none')
    fitted = compensated(transformer, images, structure, 'least_squares')
    for (name, a), b in zip(plain.named_parameters(), fitted.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('kind', ['mean', 'least_squares', 'sequential'])
def test_only_layers_that_lose_inputs_are_observed(transformer, kind):
    units = find_units(transformer)
    mlp, attention = 'blocks.0.mlp', 'blocks.1.attn'
    for sizes, expected in (
        ({attention: dict(qk=2)}, []),  # these are read by each other
        ({attention: dict(qk=2, v=2)}, [(attention, 'v')]),
        ({attention: dict(heads=2)}, [(attention, 'v')]),
        ({mlp: dict(hidden=9)}, [(mlp, 'hidden')]),
        ({mlp: dict(hidden=9, inputs=9)}, [(mlp, 'inputs'), (mlp, 'hidden')]),
        ({}, []),
    ):
        found = compensation_observers(units, sizes, kind)
        assert [(observer.unit.name, observer.kind) for observer in found] == expected
        assert all(observer.covariance == (kind != 'mean') for observer in found)
        assert compensation_observers(units, sizes, 'none') == []
        # Of what the closed form has gathered nothing is gathered twice.
        assert compensation_observers(units, sizes, kind, OBS().observers(units, sizes)) == []


def test_query_and_key_channels_alone_need_no_look_at_what_proj_reads(transformer, batches):
    images = [batch.double() for batch in batches]
    plain, dense = copy.deepcopy(transformer), copy.deepcopy(transformer)
    structure = prune(transformer, images, 'obs', ratios=dict(qk=0.3))
    assert structure.sizes['blocks.0.attn'] == dict(heads=3, qk=2)
    prune(plain, images, 'obs', ratios=dict(qk=0.3), compensation='none')
    for a, b in zip(transformer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert error(transformer, dense, images[0]) > 0


@pytest.mark.parametrize('kind', ['mean', 'least_squares'])
def test_a_layer_without_bias_is_refused_only_where_it_loses_something(network, batches, kind):
    old = network.blocks[1].mlp.fc2
    network.blocks[1].mlp.fc2 = nn.Linear(40, 12, bias=False)
    network.blocks[1].mlp.fc2.weight = old.weight
    before = copy.deepcopy(network.state_dict())
    message = rf"blocks\.1\.mlp has a layer without bias: use compensation='none', got '{kind}'"
    with pytest.raises(ValueError, match=message):
        prune(network, batches, ratios=0.4, compensation=kind)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    prune(network, batches, ratios=dict(inputs=0.4), compensation=kind)
    assert find_units(network).sizes['blocks.1.mlp'] == dict(inputs=7, hidden=40)


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, 1e308])
@pytest.mark.parametrize('kind', ['mean', 'least_squares'])
def test_a_result_that_is_not_finite_is_refused(network, bad, kind):
    units = find_units(network)
    mean = torch.zeros(40).double()
    mean[30] = bad
    covariance = torch.eye(40).double()
    covariance[3, 30] = covariance[30, 3] = bad
    own = Activations(torch.zeros(1, 40), mean, mean.square(), covariance)
    seen = Seen({('ActivationObserver', 'blocks.0.mlp', 'hidden'): own})
    structure = Structure({'blocks.0.mlp': dict(hidden=torch.arange(20))})
    before = copy.deepcopy(network.state_dict())
    message = rf"compensation='{kind}' gave weights of blocks\.0\.mlp that are not finite"
    with pytest.raises(ValueError, match=message):
        compensate(units, structure, seen, kind)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_compensation_that_there_is_not_is_named(network):
    message = rf"compensation must be one of {re.escape(str(COMPENSATIONS))}, got 'ls'"
    with pytest.raises(ValueError, match=message):
        compensate(find_units(network), Structure({}), Seen({}), 'ls')
