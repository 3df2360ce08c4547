"""Other bases of the channels of heads: the function stays, and the last channels can go."""

import copy

import pytest
import torch
import zoo

from mcf_mm.pruning import Structure, calibrate, cut, find_units, mask
from mcf_mm.pruning.moments import MomentObserver
from mcf_mm.pruning.pairs import PairObserver
from mcf_mm.pruning.rotation import find_turns, turn, turn_moments

NAMES = list(zoo.NETWORKS)


def observed(model, x, felt=True):
    """Moments of v and pairs of q/k of all attentions; of a backbone its feature map is felt."""
    observers = []
    for unit in find_units(model).attentions:
        observers.append(MomentObserver(unit, 'v', felt))
        if 'qk' in unit.kinds:
            observers.append(PairObserver(unit, felt))
    loss = (lambda batch, out: last(out).square().sum()) if felt else None
    return calibrate(model, [x], observers, lambda x: zoo.outputs(model, x), loss=loss)


def last(out):
    while isinstance(out, tuple | list):
        out = out[-1]
    return out


def smaller(units, less=3):
    """Sizes of all that can be turned, with a few channels less in each head."""
    return {
        unit.name: {kind: unit.sizes[kind] - less for kind in ('qk', 'v') if kind in unit.kinds}
        for unit in units.attentions
    }


def first_channels(units, sizes):
    kept = {}
    for name, own in sizes.items():
        unit = units.by_name[name]
        heads = torch.arange(unit.sizes['heads'])[:, None]
        kept[name] = {
            kind: (heads * unit.sizes[kind] + torch.arange(size)).flatten()
            for kind, size in own.items()
        }
    return Structure(kept)


@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'felt'])
@pytest.mark.parametrize('name', NAMES)
def test_the_function_stays_and_dropping_the_last_channels_is_masking_them(name, felt):
    model, x = zoo.network(name).double(), zoo.images(name).double()
    seen, units = observed(model, x, felt), find_units(model)
    sizes = smaller(units)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    turns = find_turns(units, sizes, seen)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert set(turns) == {(unit, kind) for unit, own in sizes.items() for kind in own}
    with torch.no_grad():
        dense = zoo.outputs(model, x)
        single = copy.deepcopy(model).float()
        turn(units, turns)
        turned = zoo.outputs(model, x)
        torch.testing.assert_close(turned, dense, atol=1e-10, rtol=1e-10)
        turn(find_units(single), turns)  # a copy, in single precision
        found = zoo.outputs(single, x.float()).double()
        torch.testing.assert_close(found, dense, atol=1e-5, rtol=1e-5)
        structure = first_channels(units, sizes)
        with mask(units, structure):
            masked = zoo.outputs(model, x)
        cut(model, structure)
        torch.testing.assert_close(zoo.outputs(model, x), masked, atol=1e-10, rtol=1e-10)
    for key, value in before.items():
        if 'qkv' not in key and 'proj' not in key:
            assert torch.equal(value, model.state_dict()[key]), key


def test_normalised_queries_and_keys_are_left_alone():
    model, x = zoo.network('timm ViT with q/k norm'), zoo.images('timm ViT')
    units = find_units(model)
    before = [unit.module.qkv.weight[:48].clone() for unit in units.attentions]
    turns = find_turns(units, smaller(units), observed(model, x))
    assert {kind for _, kind in turns} == {'v'}
    turn(units, turns)
    for unit, rows in zip(units.attentions, before, strict=True):
        assert torch.equal(unit.module.qkv.weight[:48], rows)
        assert not torch.equal(unit.module.qkv.weight[48:], rows[:24])


def test_kinds_that_keep_all_and_units_that_are_not_named_are_passed_over():
    model, x = zoo.network('timm ViT'), zoo.images('timm ViT')
    units, seen = find_units(model), observed(model, x)
    assert find_turns(
        units, {'blocks.0.attn': dict(qk=8, v=7), 'blocks.0.mlp': {}}, seen
    ).keys() == {('blocks.0.attn', 'v')}


@pytest.mark.parametrize('name', ['timm ViT', 'Hugging Face ViT', 'timm Swin'])
def test_what_goes_first_in_the_best_basis_costs_less_than_channels_as_they_are(name):
    model, x = zoo.network(name).double(), zoo.images(name).double()
    seen, plain = observed(model, x, felt=False), copy.deepcopy(model)
    units, sizes = find_units(model), smaller(find_units(model), 4)
    dense = zoo.outputs(model, x).detach()
    turn(units, find_turns(units, sizes, seen))
    errors = []
    for network in (model, plain):
        with torch.no_grad():
            cut(network, first_channels(find_units(network), sizes))
            errors.append(float((zoo.outputs(network, x) - dense).square().mean()))
    assert errors[0] < errors[1]


def test_the_cost_of_values_is_the_error_of_proj_once_the_mean_is_in_its_bias():
    model, x = zoo.network('timm ViT').double(), zoo.images('timm ViT').double()
    seen, units = observed(model, x), find_units(model)
    attention = units.attentions[0]
    moments, dense = seen.moments(attention, 'v'), attention.proj.weight.detach().clone()
    turns = find_turns([attention], smaller(units), seen)
    turn([attention], turns)
    turned = attention.proj.weight.detach()
    into = torch.block_diag(*turns[attention.name, 'v'].into[0])
    for gone in range(9):
        stays = torch.ones(3, 8, dtype=torch.double)
        stays[:, 8 - gone :] = 0
        error = dense - (turned * stays.flatten()) @ into
        # The sum over heads, each alone.
        cost = sum(
            torch.trace(
                moments.metric @ error[:, own] @ moments.covariance[own, own] @ error[:, own].T
            )
            for own in (slice(0, 8), slice(8, 16), slice(16, 24))
        )
        torch.testing.assert_close(
            turns[attention.name, 'v'].cost[gone], cost, rtol=1e-6, atol=1e-9
        )


def test_moments_are_turned_as_the_values_are():
    model, x = zoo.network('timm ViT').double(), zoo.images('timm ViT').double()
    seen, units = observed(model, x), find_units(model)
    sizes = smaller(units)
    turns = find_turns(units, sizes, seen)
    turn(units, turns)
    again = observed(model, x)
    for unit in units.attentions:
        moments = turn_moments(seen.moments(unit, 'v'), turns[unit.name, 'v'].into[0])
        found = again.moments(unit, 'v')
        torch.testing.assert_close(moments.second, found.second, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments.metric, found.metric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', ['v', 'qk'])
def test_heads_that_do_nothing_and_channels_that_are_alike_stay_finite(kind):
    model, x = zoo.network('timm ViT').double(), zoo.images('timm ViT').double()
    (unit, *_), units = find_units(model).attentions, find_units(model)
    start = dict(qk=0, v=48)[kind]
    with torch.no_grad():
        unit.module.qkv.weight[start : start + 8] = 0  # a head whose values or queries are zero
        unit.module.qkv.bias[start : start + 8] = 0
        unit.module.qkv.weight[start + 9] = unit.module.qkv.weight[start + 8]
        unit.module.qkv.bias[start + 9] = unit.module.qkv.bias[start + 8]
        dense = zoo.outputs(model, x)
        for felt in (False, True):
            turned = copy.deepcopy(model).float()
            turns = find_turns(units, smaller(units), observed(model, x, felt))
            turn(find_units(turned), turns)
            assert all(p.isfinite().all() for p in turned.parameters())
            found = zoo.outputs(turned, x.float()).double()
            torch.testing.assert_close(found, dense, atol=2e-5, rtol=1e-5)
