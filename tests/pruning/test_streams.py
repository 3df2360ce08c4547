"""What observers share."""

import pytest
import torch

from mcf_mm.pruning.streams import finite_images, gram


@pytest.mark.parametrize('width', [3, 400, 401, 1537])
def test_gram_is_the_product(width):
    values = torch.randn(20, width, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(gram(values), values.T @ values, rtol=0, atol=1e-12)


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_images_with_values_that_are_not_finite_are_found(bad):
    values = torch.randn(4, 5, 6)
    assert finite_images(values).tolist() == [True] * 4
    values[2, 3, 1] = bad
    values[1, 0, 0], values[1, 0, 1] = torch.inf, -torch.inf
    assert finite_images(values).tolist() == [True, False, False, True]
    # Large ones whose sum is no number any more.
    values = torch.full((2, 5), 3e38)
    assert finite_images(values).tolist() == [True, True]
