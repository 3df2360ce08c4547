"""Small networks and images for them."""

import pytest
import torch
from networks import Network, Transformer


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def transformer() -> Transformer:
    """With attention, in double precision."""
    torch.manual_seed(0)
    return Transformer().double().eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, 12, generator=generator) for size in (8, 8, 5)]
