"""The layers of a pruned FFN against the formula, in every shape and mode."""

import copy

import pytest
import torch
from torch import nn

from mcf_mm.pruning.flop_counter import flop_counter
from mcf_mm.pruning.layers import AlignedLinear, SlimLinear


@pytest.fixture
def slim() -> SlimLinear:
    torch.manual_seed(0)
    inputs = torch.tensor([0, 2, 3, 7, 11])
    return SlimLinear.from_linear(nn.Linear(5, 13).double(), inputs)


@pytest.mark.parametrize('shape', [(12,), (4, 12), (2, 3, 12), (2, 3, 4, 12), (0, 3, 12)])
@pytest.mark.parametrize('gradients', [False, True])
def test_it_is_the_gathered_product(slim, shape, gradients):
    x = torch.randn(shape, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        result = slim(x)
    expected = x[..., slim.inputs] @ slim.weight.T + slim.bias
    assert result.shape == (*shape[:-1], 13)
    torch.testing.assert_close(result, expected.detach() if not gradients else expected)


def test_inputs_that_are_not_contiguous(slim):
    x = torch.randn(12, 3, 4, dtype=torch.float64).permute(1, 2, 0)
    with torch.no_grad():
        torch.testing.assert_close(slim(x), slim(x.contiguous()))


@pytest.mark.parametrize('outputs', [8, 13, 16, 921])
@pytest.mark.parametrize('bias', [True, False])
def test_padding_changes_no_result_and_no_parameter(outputs, bias):
    torch.manual_seed(0)
    linear = nn.Linear(7, outputs, bias=bias)
    aligned = AlignedLinear.from_linear(linear)
    assert aligned.weight is linear.weight and aligned.bias is linear.bias
    assert aligned.state_dict().keys() == linear.state_dict().keys()
    assert repr(aligned) == repr(linear).replace('Linear', 'AlignedLinear')
    x = torch.randn(3, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(aligned(x), linear(x), atol=1e-6, rtol=1e-5)
        # Half precision as in autocast: the type of the result is that of the plain layer.
        with torch.autocast('cpu'):
            assert aligned(x).dtype == linear(x).dtype == torch.bfloat16


def test_gradients_are_those_of_a_dense_layer_with_zeros(slim):
    dense = nn.Linear(12, 13).double()
    with torch.no_grad():
        dense.weight.zero_()[:, slim.inputs] = slim.weight
        dense.bias.copy_(slim.bias)
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    copies = [x.detach().clone().requires_grad_() for _ in range(2)]
    for layer, copied in zip((slim, dense), copies, strict=True):
        layer(copied).square().sum().backward()
    torch.testing.assert_close(copies[0].grad, copies[1].grad)
    torch.testing.assert_close(slim.weight.grad, dense.weight.grad[:, slim.inputs])
    torch.testing.assert_close(slim.bias.grad, dense.bias.grad)


def test_macs_are_counted_without_the_padding(slim):
    x = torch.randn(3, 12, dtype=torch.float64)
    with flop_counter() as counter:
        slim.eval()(x)
    assert counter.get_total_flops() == 2 * 3 * 5 * 13


def test_state_dict_goes_into_a_layer_of_the_same_sizes(slim):
    other = SlimLinear(5, 13).double()
    assert list(slim.state_dict()) == ['weight', 'bias', 'inputs']
    other.load_state_dict(slim.state_dict())
    x = torch.randn(4, 12, dtype=torch.float64)
    assert torch.equal(other(x), slim(x)) and torch.equal(copy.deepcopy(slim)(x), slim(x))
