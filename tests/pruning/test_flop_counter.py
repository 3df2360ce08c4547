"""Attention counts on every device, whatever the version of torch."""

import pytest
import timm
import torch
import torch.nn.functional as F

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.pruning import measure_costs
from mcf_mm.pruning.flop_counter import flop_counter


@pytest.mark.parametrize('mask', [False, True])
@pytest.mark.parametrize('gradients', [False, True])
def test_attention_is_counted(gradients, mask):
    query = torch.randn(2, 3, 9, 16, requires_grad=gradients)
    key, value = torch.randn(2, 3, 7, 16), torch.randn(2, 3, 7, 16)
    counter = flop_counter()
    with torch.set_grad_enabled(gradients), counter:
        F.scaled_dot_product_attention(query, key, value, torch.ones(9, 7) if mask else None)
    assert counter.get_total_flops() == 2 * 2 * 3 * 9 * 7 * (16 + 16)


def test_both_counts_are_those_that_are_known():
    model = timm.create_model('deit_tiny_patch16_224').eval()
    costs = measure_costs(model, lambda network: network(torch.zeros(1, 3, 224, 224)))
    assert costs.of({})['macs'] == count_complexity(model, (224, 224)).macs == 1_253_683_200
