"""How many are kept, and what: the floor, multiples, JSON of today and of before."""

import json

import pytest
import torch

from mcf_mm.pruning import Structure, kept_size


@pytest.mark.parametrize(
    'size, ratio, kept',
    [(192, 0.4, 115), (1536, 0.4, 921), (768, 0.4, 460), (10, 0.9, 1), (3, 0.99, 1), (5, 0, 5)],
)
def test_kept_size_is_the_floor(size, ratio, kept):
    assert kept_size(size, ratio) == kept


@pytest.mark.parametrize('ratio', [-0.1, 1.0, 40, float('nan'), '0.4', True])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(ValueError, match=rf'must be a number in \[0, 1\), got {ratio!r}'):
        kept_size(10, ratio)


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


def test_a_multiple_below_one_is_refused():
    with pytest.raises(ValueError, match='multiple must be at least 1, got 0'):
        kept_size(10, 0.4, 0)


def test_structure_survives_json():
    structure = Structure(
        {
            'ffn': dict(inputs=torch.tensor([0, 2]), hidden=torch.tensor([1])),
            'attention': dict(heads=torch.tensor([0, 2]), qk=torch.tensor([1, 3, 8, 11])),
        }
    )
    again = Structure.from_json(structure.to_json())
    assert again.to_json() == structure.to_json()
    assert again.sizes == {'ffn': dict(inputs=2, hidden=1), 'attention': dict(heads=2, qk=2)}
    assert again['ffn']['inputs'].dtype == torch.int64
    assert again['attention']['qk'].tolist() == [1, 3, 8, 11]


def test_files_of_version_0_1_are_read():
    old = json.dumps({'blocks.0.mlp': {'inputs': [0, 2], 'hiddens': [1, 5]}})
    structure = Structure.from_json(old)
    assert structure.sizes == {'blocks.0.mlp': dict(inputs=2, hidden=2)}
    assert structure['blocks.0.mlp']['hidden'].tolist() == [1, 5]


@pytest.mark.parametrize('bad', [[], [2, 1], [1, 1], [-1, 0]])
def test_indices_that_are_not_ascending_are_refused(bad):
    with pytest.raises(ValueError, match='a.inputs must be ascending indices, at least one'):
        Structure({'a': dict(inputs=torch.tensor(bad, dtype=torch.long))})
