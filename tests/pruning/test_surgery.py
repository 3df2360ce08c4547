"""Surgery: the slim network is the masked one, and training goes on as if it had been small."""

import copy

import pytest
import torch
import zoo
from test_kinds import KINDS, structure_of

from mcf_mm.pruning import Gates, SlimLinear, Structure, cut, find_units, resize
from mcf_mm.pruning.surgery import shrink


@pytest.fixture
def structure(transformer):
    return structure_of(find_units(transformer), KINDS['all'], seed=2)


def zero(model, structure):
    """Set the weights of what ``structure`` drops to zero, in the dense network."""
    with torch.no_grad():
        for unit in find_units(model):
            gates = Gates([unit])
            gates.set_structure(Structure({unit.name: structure[unit.name]}))
            for (_, kind), gate in gates.values.items():
                for axis in unit.axes(kind):
                    parameter = unit.parameter(axis.parameter)
                    numbers = gate.repeat_interleave(axis.block).to(parameter)
                    entries = parameter.narrow(axis.dim, axis.offset, len(numbers))
                    shape = [1] * parameter.dim()
                    shape[axis.dim] = -1
                    entries.mul_(numbers.view(shape))


def test_parameters_stay_the_same_objects(transformer, structure):
    parameters = list(transformer.parameters())
    masked = copy.deepcopy(transformer)
    zero(masked, structure)
    cut(transformer, structure)
    assert all(a is b for a, b in zip(parameters, transformer.parameters(), strict=True))
    for unit in find_units(transformer).ffns:
        assert unit.sizes == dict(inputs=9, hidden=14) and unit.width == 12
        assert isinstance(unit.fc1, SlimLinear) and type(unit.fc2) is torch.nn.Linear
        assert unit.fc1.weight.shape == (14, 9) and unit.fc2.weight.shape == (12, 14)
    for unit in find_units(transformer).attentions:
        assert unit.sizes == dict(heads=1, qk=2, v=2)
        assert unit.module.qkv.weight.shape == (6, 12) and unit.proj.weight.shape == (12, 2)
        assert unit.module.qkv.out_features == 6 and unit.proj.in_features == 2
    x = torch.randn(4, 6, 12, dtype=torch.double)
    torch.testing.assert_close(transformer(x), masked(x), atol=1e-12, rtol=1e-10)


def test_all_inputs_kept_needs_no_gather(network, batches):
    hidden = torch.arange(0, 40, 2)
    structure = {
        ffn.name: dict(inputs=torch.arange(12), hidden=hidden) for ffn in find_units(network)
    }
    cut(network, Structure(structure))
    assert not any(isinstance(module, SlimLinear) for module in network.modules())
    assert all(ffn.sizes == dict(inputs=12, hidden=20) for ffn in find_units(network))
    assert not any(key.endswith('inputs') for key in network.state_dict())
    network(batches[0])


OPTIMIZERS = {
    'AdamW': lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.05),
    'AMSGrad': lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    'SGD': lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize('make_optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_surgery_with_optimizer_state_equals_surgery_before_training(
    transformer, batches, structure, make_optimizer
):
    def step(model, optimizer, images):
        optimizer.zero_grad()
        model(images.double()).square().mean().backward()
        optimizer.step()

    zero(transformer, structure)
    early, late = copy.deepcopy(transformer), transformer
    cut(early, structure)
    optimizers = [make_optimizer(model.parameters()) for model in (early, late)]
    for _ in range(4):
        step(early, optimizers[0], batches[0])
        step(late, optimizers[1], batches[0])
        zero(late, structure)
    cut(late, structure, optimizers[1])
    for _ in range(4):
        for model, optimizer in zip((early, late), optimizers, strict=True):
            step(model, optimizer, batches[1])
    for (name, a), b in zip(early.named_parameters(), late.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6, msg=name)


@pytest.mark.skipif(not hasattr(torch.optim, 'Adafactor'), reason='torch is older than 2.5')
def test_factored_moments_of_adafactor_shrink_along(network, batches):
    optimizer = torch.optim.Adafactor(network.parameters(), lr=1e-2)
    network(batches[0]).square().mean().backward()
    optimizer.step()
    (ffn, *_) = find_units(network)
    kept = dict(inputs=torch.tensor([0, 3, 5]), hidden=torch.arange(0, 40, 2))
    weight, bias = ffn.fc1.weight, ffn.fc1.bias
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    variance = optimizer.state[bias]['variance'].clone()
    cut(network, Structure({ffn.name: kept}), optimizer)
    after = optimizer.state[weight]
    assert torch.equal(after['row_var'], before['row_var'][kept['hidden']])  # (40, 1)
    assert torch.equal(after['col_var'], before['col_var'][:, kept['inputs']])  # (1, 12)
    assert torch.equal(after['step'], before['step'])
    assert torch.equal(optimizer.state[bias]['variance'], variance[kept['hidden']])
    network(batches[1]).square().mean().backward()
    optimizer.step()


def test_factored_moments_without_the_dimension_shrink_along():
    # As the Adafactor of Hugging Face keeps them.
    parameter = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    rows, columns = torch.randn(6), torch.randn(4)
    optimizer.state[parameter] = dict(exp_avg_sq_row=rows, exp_avg_sq_col=columns, step=3)
    kept = torch.tensor([1, 4]), torch.tensor([0, 2, 3])
    shrink(parameter, kept, optimizer)
    state = optimizer.state[parameter]
    assert torch.equal(state['exp_avg_sq_row'], rows[kept[0]])
    assert torch.equal(state['exp_avg_sq_col'], columns[kept[1]]) and state['step'] == 3


def test_a_state_that_cannot_be_cut_is_refused_and_nothing_is_changed(transformer, structure):
    optimizer = torch.optim.SGD(transformer.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(2, 6, 12, dtype=torch.double)
    transformer(x).sum().backward()
    optimizer.step()
    last = transformer.blocks[1].mlp.fc2.weight
    optimizer.state[last]['momentum_buffer'] = torch.zeros(last.numel())  # flattened
    before = copy.deepcopy(transformer.state_dict())
    classes = [type(module) for module in transformer.modules()]
    message = (
        r"SGD cannot go on after surgery: blocks\.1\.mlp\.fc2\.weight: its state 'momentum_buffer' "
        r'has shape \(240,\), .* parameter \(12, 20\)\. Take an optimizer'
    )
    with pytest.raises(ValueError, match=message):
        cut(transformer, structure, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in transformer.state_dict().items())
    assert [type(module) for module in transformer.modules()] == classes
    assert optimizer.state[transformer.mix.weight]['momentum_buffer'].shape == (12, 12)


def test_a_structure_that_does_not_fit_changes_nothing(network):
    before = copy.deepcopy(network.state_dict())
    good = dict(inputs=torch.tensor([0]), hidden=torch.tensor([0]))
    other = {'blocks.0.mlp': good, 'blocks.9.mlp': good}
    with pytest.raises(ValueError, match=r"no unit 'blocks\.9\.mlp'; it has \['blocks\.0\.mlp',"):
        cut(network, Structure(other))
    large = {'blocks.0.mlp': good, 'blocks.2.mlp': dict(inputs=torch.tensor([12]))}
    message = r'blocks\.2\.mlp has 12 inputs, numbered from 0; the structure keeps number 12'
    with pytest.raises(ValueError, match=message):
        cut(network, Structure(large))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_an_attention_that_computes_something_else_is_refused_and_nothing_is_changed(transformer):
    class Squared(type(transformer.blocks[0].attn)):
        def forward(self, x):
            return super().forward(x) ** 2

    transformer.blocks[1].attn.__class__ = Squared
    before = copy.deepcopy(transformer.state_dict())
    x = torch.randn(2, 6, 12, dtype=torch.double)
    expected = transformer.train()(x)
    heads = dict(heads=torch.tensor([1]))
    message = r'blocks\.1\.attn \(Squared\) does not compute plain attention: its heads, qk and v'
    with pytest.raises(ValueError, match=message):
        cut(transformer, Structure({'blocks.0.attn': heads, 'blocks.1.attn': heads}))
    assert all(torch.equal(value, before[key]) for key, value in transformer.state_dict().items())
    assert type(transformer.blocks[1].attn) is Squared
    assert transformer.blocks[1].attn.training
    assert torch.equal(transformer(x), expected)


def test_a_gradient_that_is_being_accumulated_shrinks_along(transformer, batches, structure):
    images = [batch.double() for batch in batches]
    zero(transformer, structure)
    late, early = copy.deepcopy(transformer), transformer
    late(images[0]).square().mean().backward()
    for model in (late, early):
        cut(model, structure)
    early(images[0]).square().mean().backward()
    for model in (late, early):
        model(images[1]).square().mean().backward()
    for (name, a), b in zip(early.named_parameters(), late.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize('name', ['mmpretrain VisionTransformer', 'timm Swin', 'Hugging Face ViT'])
def test_two_cuts_are_one(name):
    model, x = zoo.network(name).double(), zoo.images(name).double()
    once = copy.deepcopy(model)
    ratios = dict(v=0.3, qk=0.3, heads=0.4, hidden=0.3, inputs=0.3)
    first = structure_of(find_units(model), ratios)
    cut(model, first)
    second = structure_of(find_units(model), ratios, seed=1)
    cut(model, second)
    both = {}
    for unit, kinds in second.items():
        both[unit] = {}
        for kind, index in kinds.items():
            old = first[unit][kind]
            both[unit][kind] = old[index]
    cut(once, Structure(both))
    assert find_units(once).sizes == find_units(model).sizes
    with torch.no_grad():
        assert torch.equal(zoo.outputs(once, x), zoo.outputs(model, x))
    for key, value in once.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_resize_refuses_a_kind_that_there_is_not(network):
    (ffn, *_) = find_units(network)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp has no \['heads'\]: it has \['inputs',"):
        resize(ffn, dict(heads=1))
