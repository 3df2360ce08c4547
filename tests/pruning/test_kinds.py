"""Every kind of unit of every library: a cut network computes what the masked one does."""

import copy
import math

import pytest
import torch
import zoo

from mcf_mm.pruning import Structure, cut, find_units, mask, measure_costs, resize

KINDS = {
    'heads': dict(heads=0.4),
    'qk': dict(qk=0.3),
    'v': dict(v=0.4),
    'hidden': dict(hidden=0.4),
    'inputs': dict(inputs=0.4),
    'all': dict(heads=0.4, qk=0.3, v=0.4, hidden=0.3, inputs=0.2),
}


def structure_of(units, ratios, seed=0):
    """Random elements of each kind, equally many in each head."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for unit in units:
        own = {}
        for kind in (kind for kind in unit.kinds if kind in ratios):
            size, groups = unit.sizes[kind], unit.groups(kind)
            number = max(1, math.floor(size * (1 - ratios[kind])))
            parts = [
                group * size + torch.randperm(size, generator=generator)[:number].sort().values
                for group in range(groups)
            ]
            own[kind] = torch.cat(parts)
        if own:
            kept[unit.name] = unit.complete(own)
    return Structure(kept)


@pytest.mark.parametrize('kinds', KINDS)
@pytest.mark.parametrize('name', zoo.NETWORKS)
def test_cut_equals_masked(name, kinds):
    model, x = zoo.network(name), zoo.images(name)
    units = find_units(model)
    structure = structure_of(units, KINDS[kinds])
    with torch.no_grad():
        dense = zoo.outputs(model, x)
        with mask(units, structure):
            masked = zoo.outputs(model, x)
        again = zoo.outputs(model, x)
        cut(model, structure)
        small = zoo.outputs(model, x)
    assert torch.equal(dense, again)
    if structure:
        assert (masked - dense).abs().max() > 1e-3
    torch.testing.assert_close(small, masked, atol=1e-5, rtol=1e-5)
    sizes = find_units(model).sizes
    for unit, own in structure.sizes.items():
        for kind, number in own.items():
            assert sizes[unit][kind] == number
    # Once more with gradients, which all parameters get.
    loss = zoo.outputs(model, x).square().sum()
    loss.backward()
    for unit in find_units(model):
        for path, parameter in unit.module.named_parameters():
            assert parameter.grad.shape == parameter.shape, path


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', ['mmpretrain VisionTransformer', 'timm Swin', 'Hugging Face ViT'])
def test_other_dtypes(name, dtype):
    model, x = zoo.network(name).to(dtype), zoo.images(name).to(dtype)
    structure = structure_of(find_units(model), KINDS['all'])
    with torch.no_grad():
        with mask(find_units(model), structure):
            masked = zoo.outputs(model, x)
        cut(model, structure)
        small = zoo.outputs(model, x)
    assert small.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 2e-2 * float(masked.abs().max())
    torch.testing.assert_close(small, masked, atol=tolerance, rtol=0)


@pytest.mark.parametrize('name', zoo.NETWORKS)
def test_resized_network_loads_the_cut_one(name):
    model, x = zoo.network(name), zoo.images(name)
    structure = structure_of(find_units(model), KINDS['all'])
    cut(model, structure)
    other = zoo.network(name, seed=1)
    for unit in find_units(other):
        resize(unit, find_units(model).sizes[unit.name])
    other.load_state_dict(model.state_dict())
    clone = copy.deepcopy(model)
    with torch.no_grad():
        expected = zoo.outputs(model, x)
        assert torch.equal(zoo.outputs(other, x), expected)
        assert torch.equal(zoo.outputs(clone, x), expected)


@pytest.mark.parametrize('name', zoo.NETWORKS)
def test_costs_of_a_policy_are_those_counted(name):
    model, x = zoo.network(name), zoo.images(name)[:1]
    costs = measure_costs(model, lambda model: zoo.outputs(model, x))
    structure = structure_of(find_units(model), KINDS['all'])
    cut(model, structure)
    counted = measure_costs(model, lambda model: zoo.outputs(model, x))
    assert costs.of(structure.sizes) == counted.of({})
    assert counted.of({})['params'] == sum(p.numel() for p in model.parameters())


def test_a_structure_that_does_not_fit_changes_nothing():
    model = zoo.network('timm ViT')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    many = dict(hidden=torch.tensor([0, 1]))
    for bad, message in (
        ({'blocks.7.mlp': many}, r"no unit 'blocks\.7\.mlp'"),
        ({'blocks.0.mlp': many, 'blocks.1.mlp': dict(hidden=torch.tensor([500]))}, 'keeps number'),
        ({'blocks.0.mlp': many, 'blocks.1.attn': dict(qk=torch.tensor([0, 1, 8]))}, 'equally many'),
        ({'blocks.0.mlp': many, 'blocks.1.attn': dict(tokens=torch.tensor([0]))}, "no 'tokens'"),
    ):
        with pytest.raises(ValueError, match=message):
            cut(model, Structure(bad))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
