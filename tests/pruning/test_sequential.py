"""Layer after layer, each is solved on what the cut network really gives it."""

import copy

import numpy as np
import pytest
import timm
import torch
import zoo
from networks import Mlp, Network
from torch import nn

from mcf_mm.pruning import CalibrationError, Structure, cut, find_units, prune
from mcf_mm.pruning.sequential import RIDGE, find_sum, solve_sequentially
from mcf_mm.pruning.swap import copies, replaced


def error(model, dense, batches, run=lambda model, x: model(x)):
    with torch.no_grad():
        return sum(float((run(model, x) - run(dense, x)).square().sum()) for x in batches)


def ridge_to(weight, x, y):
    """Least squares with a pull to the weights that there are: rows for the pull are added."""
    x = np.c_[x, np.ones(len(x))]
    share = RIDGE * np.square(x[:, :-1]).mean()
    pull = np.sqrt(share) * np.eye(x.shape[1])[:-1]
    rows = np.r_[x / np.sqrt(len(x)), pull]
    wanted = np.r_[y / np.sqrt(len(x)), pull @ weight.T]
    return np.linalg.lstsq(rows, wanted, rcond=None)[0].T


def values(model, layer, batches):
    """What a layer reads and gives; double ``(tokens, ...)``."""
    seen = []
    handle = layer.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return [torch.cat([part.flatten(0, 1) for part in parts]).double().numpy()
            for parts in zip(*seen, strict=True)]  # fmt: skip


def test_each_layer_is_that_of_a_plain_least_squares_after_those_before_it(batches):
    torch.manual_seed(0)
    dense = Network(depth=2).double().eval()
    batches = [batch.double() for batch in batches]
    model, naive = copy.deepcopy(dense), copy.deepcopy(dense)
    inputs, hidden = torch.arange(0, 12, 2), torch.arange(5, 25)
    structure = Structure({f'blocks.{b}.mlp': dict(inputs=inputs, hidden=hidden) for b in (0, 1)})
    steps = []
    parts = copies(model, structure)
    for network in (model, naive):
        cut(network, structure)
    solve_sequentially(model, parts, batches, structure, progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for old, new in zip(dense.blocks, naive.blocks, strict=True):
        for name, rows in (('fc1', hidden), ('fc2', slice(None))):
            y = values(dense, getattr(old.mlp, name), batches)[1]
            layer = getattr(new.mlp, name)
            x, _ = values(naive, layer, batches)
            if name == 'fc1':
                x, y = x[:, inputs.numpy()], y[:, rows]
            else:  # what bypasses the layer has drifted, and the sum is to be right
                y = y + values(dense, old, batches)[0] - values(naive, new, batches)[0]
            weight = np.c_[layer.weight.detach().numpy(), layer.bias.detach().numpy()]
            solved = torch.from_numpy(ridge_to(weight, x, y))
            layer.weight.data.copy_(solved[:, :-1])
            layer.bias.data.copy_(solved[:, -1])
    for (name, found), expected in zip(model.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize('criterion', ['mcf', 'magnitude'])
def test_it_comes_closer_than_least_squares_on_the_calibration_images(network, batches, criterion):
    errors = []
    for compensation in ('none', 'least_squares', 'sequential'):
        model = copy.deepcopy(network)
        prune(model, batches, criterion, 0.4, compensation=compensation)
        errors.append(error(model, network, batches))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize('name', ['timm ViT', 'mmpretrain SwinTransformer', 'Hugging Face ViT'])
def test_every_kind_of_network_is_solved_and_keeps_its_modes(name):
    dense, x = zoo.network(name), zoo.images(name)
    side = x.shape[-1]
    batches = list(
        torch.randn(12, 3, side, side, generator=torch.Generator().manual_seed(3)).split(6)
    )
    ratios, errors = dict(inputs=0.3, hidden=0.4, v=0.3), []
    for compensation in ('none', 'sequential'):
        model = copy.deepcopy(dense).train()
        find_units(model)[0].module.eval()
        modes = {key: m.training for key, m in model.named_modules()}
        prune(model, batches, 'magnitude', ratios, compensation=compensation,
              forward=lambda x, model=model: zoo.outputs(model, x))  # fmt: skip
        assert all(modes[key] == m.training for key, m in model.named_modules() if key in modes)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        errors.append(error(model.eval(), dense, batches, zoo.outputs))
    assert errors[1] < errors[0]


def test_other_modules_are_in_their_place_for_a_while_only(network):
    own, other = network.blocks[1].mlp, nn.Identity()
    with pytest.raises(RuntimeError, match='on the way'):
        with replaced(network, {'blocks.1.mlp': other, 'blocks.2.mlp': other}):
            assert network.blocks[1].mlp is other
            raise RuntimeError('on the way')
    assert network.blocks[1].mlp is own and network.blocks[2].mlp is not other


def test_copies_stay_as_they_were(network):
    own = copies(network, ['blocks.0.mlp'])['blocks.0.mlp']
    before = own.fc1.weight.clone()
    network.blocks[0].mlp.fc1.weight.data.zero_()
    assert torch.equal(own.fc1.weight, before)


def test_no_images_once_images_and_layers_without_bias_are_refused(network, batches):
    structure = Structure({'blocks.0.mlp': dict(hidden=torch.arange(20))})
    dense = copies(network, structure)
    with pytest.raises(CalibrationError, match='there are no images'):
        solve_sequentially(network, dense, [], structure)
    with pytest.raises(ValueError, match='got generator, which can be used only once'):
        solve_sequentially(network, dense, (batch for batch in batches), structure)
    network.blocks[1].mlp.fc1.bias = None
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"blocks\.1\.mlp has a layer without bias: .*'sequential'"
    ):
        prune(network, batches, 'magnitude', dict(hidden=0.5), compensation='sequential')
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def sum_of(model, x, unit, place):
    return find_sum(
        model, lambda x: zoo.outputs(model, x), x, unit.name, dict(unit.consumers())[place]
    )


@pytest.mark.parametrize(
    ('name', 'path'),
    [
        ('timm ViT', 'blocks.0'),
        ('mmpretrain VisionTransformer', 'backbone.layers.0.ffn'),
        ('mmpretrain SwinTransformer', 'backbone.stages.0.blocks.0.ffn'),
    ],
)
def test_the_module_that_adds_is_found(name, path):
    model, x = zoo.network(name), zoo.images(name)
    found = sum_of(model, x, find_units(model).ffns[0], 'hidden')
    assert found.module.endswith(path.removeprefix('backbone.'))
    torch.testing.assert_close(found.factor, torch.ones_like(found.factor), atol=1e-3, rtol=0)
    # The FFN comes before the module ends, so the output of attention is not in its sum as it is.
    attention = next(unit for unit in find_units(model) if 'heads' in unit.kinds)
    assert sum_of(model, x, attention, 'v') is None


def test_layer_scale_is_the_factor():
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        32, 8, embed_dim=16, depth=2, num_heads=2, num_classes=5, init_values=0.1
    ).eval()
    model.blocks[1].ls2.gamma.data.uniform_(-1, 1)
    model.blocks[1].ls2.gamma.data[3] = 0
    unit, x = find_units(model).by_name['blocks.1.mlp'], torch.randn(2, 3, 32, 32)
    found = sum_of(model, x, unit, 'hidden')
    assert found.module == 'blocks.1'
    torch.testing.assert_close(found.factor, model.blocks[1].ls2.gamma.data, atol=1e-3, rtol=1e-3)
    assert found.inverse[3] == 0 and found.inverse.isfinite().all()


def test_before_a_norm_there_is_no_sum_to_be_made_right():
    class AfterNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp, self.norm = Mlp(12, 20), nn.LayerNorm(12)

        def forward(self, x):
            return self.norm(x + self.mlp(x))

    torch.manual_seed(0)
    model = nn.Sequential(AfterNorm(), AfterNorm())
    x = torch.randn(2, 4, 12)
    unit = find_units(model).ffns[1]
    assert find_sum(model, model, x, unit.name, unit.module.fc2) is None
