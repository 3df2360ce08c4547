"""A small network and images for it."""

import pytest
import torch
from networks import Network


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, 12, generator=generator) for size in (8, 8, 5)]
