"""The whole method, its baselines and compensation."""

import copy

import pytest
import timm
import torch

from mcf_mm.pruning import find_classifier, find_ffns, prune
from mcf_mm.pruning.oneshot import METHODS


def error(network, dense, batches):
    with torch.no_grad():
        return float((network(batches[0]) - dense(batches[0])).square().mean())


@pytest.mark.parametrize('method', METHODS)
def test_every_method_gives_the_sizes_and_repeats_itself(network, batches, method):
    again = copy.deepcopy(network)
    structure = prune(network, batches, 0.25, 0.5, method=method)
    assert set(structure.sizes.values()) == {(9, 20)}
    assert prune(again, batches, 0.25, 0.5, method=method).to_json() == structure.to_json()
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )


def test_random_depends_on_the_seed(network, batches):
    again = copy.deepcopy(network)
    first = prune(network, batches, method='random', seed=0)
    assert prune(again, batches, method='random', seed=1).to_json() != first.to_json()


def test_ratio_zero_changes_no_output(network, batches):
    dense = copy.deepcopy(network)
    prune(network, batches, 0.0, 0.0)
    assert error(network, dense, batches) < 1e-10


def test_compensation_brings_the_output_closer(network, batches):
    dense = copy.deepcopy(network)
    errors = {}
    for kind in ('none', 'mean', 'least_squares'):
        slim = copy.deepcopy(network)
        prune(slim, batches, 0.25, 0.5, compensation=kind)
        errors[kind] = error(slim, dense, batches)
    assert errors['least_squares'] < errors['mean'] < errors['none']


def test_least_squares_is_exact_where_a_unit_repeats_another(network, batches):
    # Two units of equal input weights carry the same; dropping one must lose nothing.
    for ffn in find_ffns(network):
        with torch.no_grad():
            ffn.fc1.weight[20:] = ffn.fc1.weight[:20]
            ffn.fc1.bias[20:] = ffn.fc1.bias[:20]
            # The tie-break keeps the first twenty.
            ffn.fc2.weight[:, 20:] *= 1e-3
    dense = copy.deepcopy(network)
    prune(network, batches, 0.0, 0.5, method='magnitude', compensation='least_squares')
    scale = dense(batches[0]).detach().square().mean()
    assert error(network, dense, batches) < 1e-5 * scale


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(input_ratio=1.0), r'input_ratio: .* in \[0, 1\), got 1.0'),
        (dict(hidden_ratio=-0.1), r'hidden_ratio: .* in \[0, 1\), got -0.1'),
        (dict(method='mfc'), r"method must be one of .*, got 'mfc'"),
        (dict(compensation='ls'), r"compensation must be one of .*, got 'ls'"),
        (dict(guide=0), r'guide must be in \(0, 1\], got 0'),
    ],
)
def test_arguments_out_of_range_are_named(network, batches, arguments, message):
    with pytest.raises(ValueError, match=message):
        prune(network, batches, **arguments)


def test_a_network_without_ffns_is_refused(batches):
    with pytest.raises(ValueError, match='no FFN found in Linear'):
        prune(torch.nn.Linear(3, 3), batches)


def test_a_pruned_network_is_not_pruned_again(network, batches):
    prune(network, batches)
    with pytest.raises(ValueError, match=r'blocks\.0\.mlp is pruned already, to 7 of 12 inputs'):
        prune(network, batches)


def test_a_deit_of_timm_gets_the_sizes_of_the_paper():
    torch.manual_seed(0)
    model = timm.create_model('deit_tiny_patch16_224', img_size=32, num_classes=10).eval()
    assert find_classifier(model) is model.head
    structure = prune(model, [torch.randn(4, 3, 32, 32)])
    assert len(structure) == 12 and set(structure.sizes.values()) == {(115, 460)}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
