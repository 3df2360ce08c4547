"""Where the method may end, and sizes in multiples."""

import copy

import pytest
import torch

from mcf_mm.pruning import SparseFFN, find_ffns, kept_size, prune
from mcf_mm.pruning.surgery import compact_rows


def test_rows_with_own_inputs_compute_what_the_masked_network_computes(network, batches):
    masked, compact = copy.deepcopy(network), copy.deepcopy(network)
    assert prune(masked, batches, last_step='fis') is None
    assert prune(compact, batches, last_step='crs') is None
    for ffn, rows in zip(find_ffns(masked), find_ffns(compact), strict=True):
        assert ffn.sizes == (12, 40) and rows.sizes == (7, 24)
        # 7 of 12 inputs in each row, and not the same ones everywhere.
        assert ((ffn.fc1.weight != 0).sum(1) == 7).all()
        assert len(rows.fc1.inputs.unique(dim=0)) > 1
        assert torch.equal(rows.fc1.dense_weight(), ffn.fc1.weight)
        assert torch.equal(rows.fc2.dense_weight(), ffn.fc2.weight)
    torch.testing.assert_close(compact(batches[0]), masked(batches[0]))
    assert sum(p.numel() for p in compact.parameters()) < sum(
        p.numel() for p in network.parameters()
    )


def test_rows_take_their_moments_along(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(4, 6, 12)).sum().backward()
    optimizer.step()
    (ffn, *_) = find_ffns(network)
    parameter = ffn.fc1.weight
    before = optimizer.state[parameter]['exp_avg'].clone()
    mask = SparseFFN.from_scores(
        (torch.rand(40, 12), torch.rand(12, 40)), (torch.rand(40, 12), torch.rand(12, 40)), 0.5, 0.5
    ).masks
    compact_rows(network, {ffn.name: mask}, optimizer)
    assert ffn.fc1.weight is parameter and parameter.shape == (40, 6)
    expected = before[mask[0]].view(40, 6)  # row by row, ascending
    assert torch.equal(optimizer.state[parameter]['exp_avg'], expected)


def test_a_network_with_own_rows_is_pruned_already(network, batches):
    prune(network, batches, last_step='crs')
    with pytest.raises(ValueError, match='blocks.0.mlp is pruned already'):
        prune(network, batches)


@pytest.mark.parametrize(
    'size, ratio, multiple, kept',
    [
        (384, 0.4, 1, 230),
        (384, 0.4, 8, 232),
        (384, 0.4, 16, 224),
        (384, 0.4, 64, 256),
        (1536, 0.4, 64, 896),
        (12, 0.9, 8, 8),  # at least one multiple
        (12, 0.1, 64, 12),  # never more than there are
        (100, 0.0, 64, 100),  # nothing was to be dropped
    ],
)
def test_sizes_in_multiples(size, ratio, multiple, kept):
    assert kept_size(size, ratio, multiple) == kept


def test_multiples_in_one_shot(network, batches):
    structure = prune(network, batches, multiple=8)
    assert set(structure.sizes.values()) == {(8, 24)}
