"""Surgery: the slim network is the masked one, and training goes on as if it had been small."""

import copy

import pytest
import torch

from mcf_mm.pruning import Kept, SlimLinear, Structure, find_ffns, prune_ffns


@pytest.fixture
def structure(network):
    generator = torch.Generator().manual_seed(2)
    return Structure(
        {
            ffn.name: Kept(
                torch.randperm(12, generator=generator)[:7].sort().values,
                torch.randperm(40, generator=generator)[:24].sort().values,
            )
            for ffn in find_ffns(network)
        }
    )


def mask(network, structure):
    """Zeroes what ``structure`` drops, in the dense network."""
    with torch.no_grad():
        for ffn in find_ffns(network):
            keep_in, keep_hidden = torch.zeros(12), torch.zeros(40)
            keep_in[structure[ffn.name].inputs] = 1
            keep_hidden[structure[ffn.name].hiddens] = 1
            ffn.fc1.weight.mul_(keep_in).mul_(keep_hidden[:, None])
            ffn.fc1.bias.mul_(keep_hidden)
            ffn.fc2.weight.mul_(keep_hidden)


def test_slim_network_equals_masked_network(network, batches, structure):
    masked = copy.deepcopy(network)
    mask(masked, structure)
    parameters = list(network.parameters())
    prune_ffns(network, structure)
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    for ffn in find_ffns(network):
        assert ffn.sizes == (7, 24) and ffn.width == 12
        assert isinstance(ffn.fc1, SlimLinear) and type(ffn.fc2) is torch.nn.Linear
        assert ffn.fc1.weight.shape == (24, 7) and ffn.fc2.weight.shape == (12, 24)
    with torch.no_grad():
        difference = (network(batches[0]) - masked(batches[0])).abs().max()
    assert difference < 1e-5


def test_all_inputs_kept_needs_no_gather(network, batches):
    structure = Structure(
        {ffn.name: Kept(torch.arange(12), torch.arange(0, 40, 2)) for ffn in find_ffns(network)}
    )
    prune_ffns(network, structure)
    assert not any(isinstance(module, SlimLinear) for module in network.modules())
    assert all(ffn.sizes == (12, 20) for ffn in find_ffns(network))
    assert not any(key.endswith('inputs') for key in network.state_dict())
    network(batches[0])


@pytest.mark.parametrize(
    'make_optimizer',
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.05),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
        lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    ],
)
def test_surgery_with_optimizer_state_equals_surgery_before_training(
    network, batches, structure, make_optimizer
):
    def step(model, optimizer, images):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    mask(network, structure)
    early, late = copy.deepcopy(network), network
    prune_ffns(early, structure)
    optimizers = [make_optimizer(model.parameters()) for model in (early, late)]
    for _ in range(4):
        step(early, optimizers[0], batches[0])
        step(late, optimizers[1], batches[0])
        mask(late, structure)
    prune_ffns(late, structure, optimizers[1])
    for _ in range(4):
        for model, optimizer in zip((early, late), optimizers, strict=True):
            step(model, optimizer, batches[1])
    for (name, a), b in zip(early.named_parameters(), late.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_a_structure_that_does_not_fit_changes_nothing(network, structure):
    before = copy.deepcopy(network.state_dict())
    other = dict(structure) | {'blocks.9.mlp': structure['blocks.0.mlp']}
    with pytest.raises(ValueError, match=r"no FFN 'blocks\.9\.mlp'"):
        prune_ffns(network, Structure(other))
    large = dict(structure) | {'blocks.2.mlp': Kept(torch.tensor([12]), torch.tensor([0]))}
    with pytest.raises(ValueError, match=r'blocks\.2\.mlp has 12 inputs .* up to input 12'):
        prune_ffns(network, Structure(large))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_gradient_that_is_being_accumulated_shrinks_along(network, batches, structure):
    mask(network, structure)
    late, early = copy.deepcopy(network), network
    late(batches[0]).square().mean().backward()
    for model in (late, early):
        prune_ffns(model, structure)
    early(batches[0]).square().mean().backward()
    for model in (late, early):
        model(batches[1]).square().mean().backward()
    for (name, a), b in zip(early.named_parameters(), late.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)
