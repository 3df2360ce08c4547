"""CRS keeps equally many weights per row; X-Transformation makes the rows agree by vote."""

import pytest
import torch

from mcf_mm.pruning import SparseFFN, regular_sparsity, x_transformation
from mcf_mm.pruning.structure import Kept, Structure, kept_size


@pytest.mark.parametrize(
    'size, ratio, kept',
    [(192, 0.4, 115), (1536, 0.4, 921), (768, 0.4, 460), (10, 0.9, 1), (3, 0.99, 1)],
)
def test_kept_size_is_the_floor(size, ratio, kept):
    assert kept_size(size, ratio) == kept


@pytest.mark.parametrize('ratio', [-0.1, 1.0, 40, float('nan')])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(ValueError, match=rf'must be in \[0, 1\), got {ratio}'):
        kept_size(10, ratio)


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
    kept = x_transformation({'ffn': sparse}, 0.5, 0.5)['ffn']
    assert kept.hiddens.tolist() == [0, 1]
    assert kept.inputs.tolist() == [0, 1]  # two votes, then one vote each: the smaller index


def test_equal_votes_are_decided_by_the_counts():
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()
    counts = torch.tensor([[3, 0, 9], [0, 8, 9]])
    sparse = SparseFFN(counts.T.contiguous(), mask.T.contiguous(), counts, mask)
    kept = x_transformation({'ffn': sparse}, 0.0, 1 / 3)['ffn']
    assert kept.hiddens.tolist() == [1, 2]


def test_shared_inputs_of_a_network_are_one_set():
    torch.manual_seed(0)
    sparse = {
        name: SparseFFN.from_scores(
            (torch.rand(16, 8), torch.rand(8, 16)), (torch.rand(16, 8), torch.rand(8, 16)), 0.5, 0.5
        )
        for name in 'abc'
    }
    own = x_transformation(sparse, 0.5, 0.5)
    shared = x_transformation(sparse, 0.5, 0.5, shared_inputs='network')
    assert len({tuple(kept.inputs.tolist()) for kept in own.values()}) > 1
    assert len({tuple(kept.inputs.tolist()) for kept in shared.values()}) == 1
    with pytest.raises(ValueError, match="'layer' or 'network', got 'model'"):
        x_transformation(sparse, 0.5, 0.5, shared_inputs='model')


def test_structure_survives_json_and_refuses_nonsense():
    structure = Structure({'a': Kept(torch.tensor([0, 2]), torch.tensor([1]))})
    again = Structure.from_json(structure.to_json())
    assert again.sizes == {'a': (2, 1)} and again['a'].inputs.tolist() == [0, 2]
    for bad in ([], [2, 1], [1, 1], [-1, 0]):
        with pytest.raises(ValueError, match='a.inputs must be ascending'):
            Structure({'a': Kept(torch.tensor(bad, dtype=torch.long), torch.tensor([1]))})
