"""Folds what the dropped elements carried into the weights that stay (ours, beyond the paper)."""

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Activations, Calibration
from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.targets import find_ffns

COMPENSATIONS = ('none', 'mean', 'least_squares')
#: Ridge term, as a share of the mean variance of the kept elements.
RIDGE = 1e-3


def compensate(
    model: nn.Module, structure: Structure, calibration: Calibration, kind: str = 'none'
) -> None:
    """Changes weights and biases of the FFNs in place, before surgery drops what is not kept.

    ``'mean'`` replaces each dropped element by its mean. ``'least_squares'`` predicts the dropped
    elements from the kept ones by ridge regression, in closed form from the covariances.

    Args:
        model: Network that ``calibration`` saw, not yet cut.
        structure: What will be kept.
        calibration: Statistics of the dense network; with covariances for ``'least_squares'``.
        kind: ``'none'`` (the paper), ``'mean'`` or ``'least_squares'``. Defaults to ``'none'``.

    Raises:
        ValueError: ``kind`` is none of these, or a layer has no bias to fold into.
    """
    check_compensation(kind)
    if kind == 'none':
        return
    for ffn in find_ffns(model):
        if ffn.name in structure:
            kept = structure[ffn.name]
            _fold(ffn.fc1, kept.inputs, calibration.inputs[ffn.name], kind, ffn.name)
            _fold(ffn.fc2, kept.hiddens, calibration.hiddens[ffn.name], kind, ffn.name)


def check_compensation(kind: str) -> None:
    """Raises a ValueError unless ``kind`` is one of ``COMPENSATIONS``."""
    if kind not in COMPENSATIONS:
        raise ValueError(f'compensation must be one of {COMPENSATIONS}, got {kind!r}')


@torch.no_grad()
def _fold(linear: nn.Linear, kept: Tensor, activations: Activations, kind: str, name: str) -> None:
    weight = linear.weight.data.double()
    kept = kept.to(weight.device)
    dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    dropped[kept] = False
    dropped = dropped.nonzero().squeeze(1)
    if len(dropped) == 0:
        return
    if linear.bias is None:
        raise ValueError(f"{name} has a layer without bias: use compensation='none'")
    mean = activations.mean.double()
    constant = mean[dropped]
    if kind == 'least_squares':
        covariance = activations.covariance
        own = covariance[kept][:, kept]
        own.diagonal().add_(RIDGE * own.diagonal().mean() + 1e-12)
        # dropped ~ mean + slope^T (kept - mean)
        slope = torch.linalg.solve(own, covariance[kept][:, dropped])
        linear.weight.data[:, kept] += (weight[:, dropped] @ slope.T).to(linear.weight)
        constant = constant - slope.T @ mean[kept]
    linear.bias.data += (weight[:, dropped] @ constant).to(linear.bias)
