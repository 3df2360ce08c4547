"""Short epochs go through the whole set before an image comes again."""

import pytest

from mcf_mm.datasets import ShortEpochSampler


def test_successive_epochs_share_one_order():
    sampler = ShortEpochSampler(range(10), epoch_size=4, seed=3)
    epochs = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert [len(epoch) for epoch in epochs] == [len(sampler)] * 5 == [4] * 5
    seen = sum(epochs, [])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]


@pytest.mark.parametrize('size', [0, 11])
def test_size_out_of_range(size):
    with pytest.raises(ValueError, match=f'epoch_size must be from 1 to 10, got {size}'):
        ShortEpochSampler(range(10), epoch_size=size, seed=0)
