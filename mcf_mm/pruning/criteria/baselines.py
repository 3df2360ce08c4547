"""Criteria to compare MCF with: each scores the weights of one linear layer, ``(O, I)``."""

import torch
from torch import Tensor

from mcf_mm.pruning.observers import Activations


def magnitude(weight: Tensor, activations: Activations) -> Tensor:
    """|W|: the 'direct pruning' of table 3."""
    return weight.detach().float().abs()


def activation(weight: Tensor, activations: Activations) -> Tensor:
    """|W| * rms(u): the mean size of each product, as in Wanda (Sun et al., ICLR 2024)."""
    return weight.detach().float().abs() * activations.rms


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random numbers, drawn on the CPU so that every device gets the same."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
