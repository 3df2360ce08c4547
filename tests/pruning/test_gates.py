"""Gates multiply without a change of the network, learn, and fold into the weights."""

import pytest
import torch
import zoo
from test_kinds import KINDS, structure_of
from torch import nn

from mcf_mm.pruning import Gates, Structure, cut, find_units, mask


def random_gates(units, kinds=None) -> Gates:
    gates = Gates(units, kinds)
    generator = torch.Generator().manual_seed(2)
    for values in gates.values.values():
        values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return gates


@pytest.mark.parametrize('kind', ['heads', 'qk', 'v', 'inputs', 'hidden'])
@pytest.mark.parametrize('name', zoo.NETWORKS)
def test_folded_gates_leave_the_function(name, kind):
    model, x = zoo.network(name), zoo.images(name)
    gates = random_gates(find_units(model), [kind])
    with torch.no_grad():
        dense = zoo.outputs(model, x)
        with gates:
            gated = zoo.outputs(model, x)
        gates.fold()
        folded = zoo.outputs(model, x)
        with gates:  # which are 1 now
            again = zoo.outputs(model, x)
    if gates.values:
        assert (gated - dense).abs().max() > 1e-3
    torch.testing.assert_close(folded, gated, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, folded)


@pytest.mark.parametrize('name', ['mmpretrain SwinTransformer', 'timm ViT', 'Hugging Face ViT'])
def test_all_kinds_fold_together_in_a_network_that_is_cut_already(name):
    model, x = zoo.network(name), zoo.images(name)
    cut(model, structure_of(find_units(model), KINDS['all']))
    gates = random_gates(find_units(model))
    assert {kind for _, kind in gates.values} == {'heads', 'qk', 'v', 'inputs', 'hidden'}
    with torch.no_grad():
        with gates:
            gated = zoo.outputs(model, x)
        gates.fold()
        torch.testing.assert_close(zoo.outputs(model, x), gated, atol=1e-5, rtol=1e-5)


def test_attached_gates_are_no_part_of_the_network(transformer):
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    gates = random_gates(find_units(transformer)).attach()
    transformer(torch.randn(2, 6, 12, dtype=torch.double))
    after = transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert sum(len(m._forward_pre_hooks) for m in transformer.modules()) == 2 * 4
    with pytest.raises(RuntimeError, match='these gates are attached already'):
        gates.attach()
    gates.remove()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in transformer.modules())
    gates.attach().remove()


def test_gates_that_are_parameters_learn(transformer):
    gates = Gates(find_units(transformer), ['heads', 'qk', 'hidden'])
    for key, values in gates.values.items():
        gates.values[key] = nn.Parameter(values.double())
    x = torch.randn(2, 6, 12, dtype=torch.double)
    with gates:
        transformer(x).square().sum().backward()
        for (name, _), gate in gates.values.items():
            assert gate.grad.shape == gate.shape and gate.grad.abs().max() > 0, name
        # One against the difference quotient.
        gate = gates.values['blocks.0.mlp', 'hidden']
        with torch.no_grad():
            losses = []
            for step in (1e-6, -2e-6):
                gate[3] += step
                losses.append(transformer(x).square().sum())
        slope = (losses[0] - losses[1]) / 2e-6
    torch.testing.assert_close(slope, gate.grad[3], atol=1e-5, rtol=1e-5)


def test_gates_of_a_structure_are_one_where_it_keeps(transformer):
    units = find_units(transformer)
    structure = Structure(
        {
            'blocks.0.attn': dict(heads=torch.tensor([0, 2]), v=torch.tensor([1, 8])),
            'blocks.1.mlp': dict(hidden=torch.tensor([0, 19])),
        }
    )
    values = mask(units, structure).values
    assert values['blocks.0.attn', 'heads'].tolist() == [1, 0, 1]
    assert values['blocks.0.attn', 'v'].nonzero().flatten().tolist() == [1, 8]
    assert values['blocks.0.attn', 'qk'].all()
    assert values['blocks.1.mlp', 'hidden'].nonzero().flatten().tolist() == [0, 19]
    assert not any(name == 'blocks.1.attn' for name, _ in values)


def test_a_structure_without_gates_is_refused(transformer):
    gates = Gates(find_units(transformer), ['hidden'])
    with pytest.raises(ValueError, match=r"no unit 'blocks\.7\.mlp' has gates"):
        gates.set_structure(Structure({'blocks.7.mlp': dict(hidden=torch.tensor([0]))}))
    with pytest.raises(ValueError, match=r'blocks\.0\.mlp has no gates for inputs'):
        gates.set_structure(Structure({'blocks.0.mlp': dict(inputs=torch.tensor([0]))}))
