"""CRS keeps equally many weights per row; X-Transformation makes the rows agree by vote."""

import pytest
import torch

from mcf_mm.pruning import MCF, calibrate, find_units, uniform
from mcf_mm.pruning.criteria.regular import (
    SparseFFN,
    check_last_step,
    held_masks,
    hold,
    regular_sparsity,
    x_transformation,
)


def test_crs_breaks_ties_by_size_then_index():
    scores = torch.tensor([[5, 7, 5, 5, 1], [2, 2, 2, 2, 2]])
    tiebreak = torch.tensor([[0.1, 0.0, 0.3, 0.2, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    mask = regular_sparsity(scores, tiebreak, 3)
    assert mask.tolist() == [[False, True, True, True, False], [True, True, True, False, False]]


def test_hidden_units_go_first_and_only_their_rows_vote_for_inputs():
    # Hidden units 0 and 1 stay. Units 2 and 3 would vote for inputs 2 and 3, but are gone.
    mask1 = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    mask2 = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    sparse = SparseFFN(torch.ones(4, 4), mask1, torch.ones(4, 4), mask2)
    kept = x_transformation({'ffn': sparse}, {'ffn': dict(inputs=2, hidden=2)})['ffn']
    assert kept['hidden'].tolist() == [0, 1]
    assert kept['inputs'].tolist() == [0, 1]  # two votes, then one vote each: the smaller index


def test_equal_votes_are_decided_by_the_counts():
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()
    counts = torch.tensor([[3, 0, 9], [0, 8, 9]])
    sparse = SparseFFN(counts.T.contiguous(), mask.T.contiguous(), counts, mask)
    kept = x_transformation({'ffn': sparse}, {'ffn': dict(hidden=2)})['ffn']
    assert kept['hidden'].tolist() == [1, 2]
    assert kept['inputs'].tolist() == [0, 1]  # a kind without a size keeps all


def random_sparse(kept: tuple[int, int]) -> SparseFFN:
    scores = [(torch.rand(16, 8), torch.rand(8, 16)) for _ in range(2)]
    return SparseFFN.from_scores(*scores, kept)


def test_shared_inputs_of_a_network_are_one_set():
    torch.manual_seed(0)
    sparse = {name: random_sparse((4, 8)) for name in 'abc'}
    sizes = dict.fromkeys('abc', dict(inputs=4, hidden=8))
    own = x_transformation(sparse, sizes)
    shared = x_transformation(sparse, sizes, shared_inputs='network')
    assert len({tuple(kept['inputs'].tolist()) for kept in own.values()}) > 1
    assert len({tuple(kept['inputs'].tolist()) for kept in shared.values()}) == 1
    with pytest.raises(ValueError, match=r'keep equally many inputs, got \[3, 4\]'):
        x_transformation(sparse, sizes | {'b': dict(inputs=3, hidden=8)}, shared_inputs='network')


def test_masks_keep_equally_many_weights_in_each_row(network, batches):
    units = find_units(network)
    sizes = uniform(units, 0.4)
    criterion = MCF()
    criterion.classifier = network.head
    seen = calibrate(network, batches, criterion.observers(units, sizes))
    sparse = criterion.sparsify(units, sizes, seen)
    assert list(sparse) == [ffn.name for ffn in units.ffns]
    for ffn in sparse.values():
        assert (ffn.mask1.sum(1) == 7).all() and (ffn.mask2.sum(1) == 24).all()
        # Not the same inputs in every row: that comes with the vote.
        assert len(ffn.mask1.unique(dim=0)) > 1
        for scores, mask, threshold in zip(ffn.scores, ffn.masks, ffn.thresholds, strict=True):
            least = [float(row[own].min()) for row, own in zip(scores, mask, strict=True)]
            assert threshold == sorted(least)[(len(least) - 1) // 2]
    # One FFN alone gets the mask that it gets among all: guidance starts at the classifier.
    first = criterion.sparsify(units, sizes, seen, only='blocks.0.mlp')
    assert list(first) == ['blocks.0.mlp']
    assert torch.equal(first['blocks.0.mlp'].scores1, sparse['blocks.0.mlp'].scores1)
    assert criterion.vote(sparse, sizes).to_json() == criterion.select(units, sizes, seen).to_json()


def test_scores_for_a_threshold_are_the_unguided_counts_of_each_unit(network, batches):
    units = find_units(network)
    criterion = MCF(guide=1.0)
    seen = calibrate(network, batches, criterion.observers(units, {}))
    sparse = criterion.sparsify(units, units.sizes, seen)
    guided = MCF()
    guided.classifier = network.head
    for ffn in units.ffns:
        expected = sparse[ffn.name].scores1.sum(0), sparse[ffn.name].scores2.sum(0)
        for own in (criterion, guided):
            assert torch.equal(own.scores(ffn, 'inputs', seen), expected[0])
            assert torch.equal(own.scores(ffn, 'hidden', seen), expected[1])


def test_masks_are_held_by_zeros_in_the_weights(network, batches):
    units = find_units(network)
    sizes = uniform(units, 0.4)
    criterion = MCF(guide=1.0)
    seen = calibrate(network, batches, criterion.observers(units, sizes))
    sparse = criterion.sparsify(units, sizes, seen, only='blocks.1.mlp')
    before = {key: value.clone() for key, value in network.state_dict().items()}
    hold(held_masks(units, sparse))
    for key, value in network.state_dict().items():
        mask = dict(zip(('blocks.1.mlp.fc1.weight', 'blocks.1.mlp.fc2.weight'),
                        sparse['blocks.1.mlp'].masks, strict=True)).get(key, 1)  # fmt: skip
        assert torch.equal(value, before[key] * mask), key


def test_a_last_step_that_cannot_be_is_named():
    check_last_step('fis', 'none')
    check_last_step('x_transformation', 'mean')
    with pytest.raises(ValueError, match=r"last_step must be one of \('fis', .*\), got 'vote'"):
        check_last_step('vote', 'none')
    message = r"compensation='mean' needs rows that agree .* use last_step='x_transformation'"
    with pytest.raises(ValueError, match=message):
        check_last_step('crs', 'mean')
