"""The whole method on a trained network: calibrate -> structure -> surgery."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from mcf_mm.pruning import baselines
from mcf_mm.pruning.calibration import Calibration, calibrate
from mcf_mm.pruning.compensation import check_compensation, compensate
from mcf_mm.pruning.fis import band_limit, count_outside, guided_rows
from mcf_mm.pruning.regular import SparseFFN, x_transformation
from mcf_mm.pruning.structure import Structure, kept_size
from mcf_mm.pruning.surgery import prune_ffns
from mcf_mm.pruning.targets import FFN, find_classifier, find_ffns

METHODS = ('mcf', 'random', 'magnitude', 'activation')


def sparsify(
    model: nn.Module,
    calibration: Calibration,
    input_ratio: float,
    hidden_ratio: float,
    method: str = 'mcf',
    guide: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
    only: str | None = None,
) -> dict[str, SparseFFN]:
    """Scores the weights of every FFN and applies CRS.

    Args:
        model: Network that ``calibration`` saw.
        calibration: Result of :func:`~mcf_mm.pruning.calibration.calibrate`.
        input_ratio: Share of the inputs of fc1 to drop, in [0, 1).
        hidden_ratio: Share of the hidden units to drop, in [0, 1).
        method: ``'mcf'`` counts as the paper; ``'random'``, ``'magnitude'`` and
            ``'activation'`` are the baselines. Defaults to ``'mcf'``.
        guide: Fraction of important elements that guide FIS; 1 for all. Defaults to 0.5 (ours).
        scale: Width of the band of FIS. Defaults to 1 (ours).
        seed: For ``'random'``. Defaults to 0.
        only: Name of the one FFN to score. Guidance still starts at the classifier. Defaults to
            all that were calibrated.

    Returns:
        Scores and masks by FFN name, in the order of the forward pass.

    Raises:
        ValueError: An argument is out of range.
    """
    check_arguments(method, input_ratio, hidden_ratio, guide)
    ffns = [ffn for ffn in find_ffns(model) if ffn.name in calibration.inputs]
    generator = torch.Generator().manual_seed(seed)
    sparse = {}
    for ffn, outputs, hiddens in guided_rows(ffns, calibration, find_classifier(model), guide):
        if only in (None, ffn.name):
            layers = (
                (ffn.fc1.weight, calibration.inputs[ffn.name], hiddens),
                (ffn.fc2.weight, calibration.hiddens[ffn.name], outputs),
            )
            if method == 'mcf':
                scores = [
                    count_outside(seen.tokens, weight, band_limit(weight, scale), rows)
                    for weight, seen, rows in layers
                ]
            elif method == 'random':
                scores = [baselines.random(weight, seen, generator) for weight, seen, _ in layers]
            else:
                scores = [getattr(baselines, method)(weight, seen) for weight, seen, _ in layers]
            tiebreaks = [baselines.activation(weight, seen) for weight, seen, _ in layers]
            sparse[ffn.name] = SparseFFN.from_scores(scores, tiebreaks, input_ratio, hidden_ratio)
        if ffn.name == only:
            break
    return dict(reversed(sparse.items()))


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    input_ratio: float = 0.4,
    hidden_ratio: float = 0.4,
    method: str = 'mcf',
    compensation: str = 'none',
    guide: float = 0.5,
    scale: float = 1.0,
    shared_inputs: str = 'layer',
    seed: int = 0,
    forward: Callable[[Any], Any] | None = None,
    image_names: Callable[[Any], Sequence[str]] | None = None,
) -> Structure:
    """Prunes the FFNs of ``model`` in place, without training.

    Args:
        model: A network with FFNs that :func:`~mcf_mm.pruning.targets.find_ffns` finds.
        batches: Calibration images, see :func:`~mcf_mm.pruning.calibration.calibrate`; the
            paper takes 1,024.
        input_ratio: Share of the inputs of fc1 to drop. Defaults to 0.4.
        hidden_ratio: Share of the hidden units to drop; the paper takes the same. Defaults to
            0.4.
        method: See :func:`sparsify`. Defaults to ``'mcf'``.
        compensation: See :func:`~mcf_mm.pruning.compensation.compensate`. Defaults to
            ``'none'``, the paper.
        guide: See :func:`sparsify`. Defaults to 0.5.
        scale: See :func:`sparsify`. Defaults to 1.
        shared_inputs: See :func:`~mcf_mm.pruning.regular.x_transformation`. Defaults to
            ``'layer'``.
        seed: See :func:`sparsify`. Defaults to 0.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        image_names: Names of the images of a batch, for error messages. Defaults to numbers.

    Returns:
        What was kept.

    Raises:
        ValueError: No FFN, an FFN that is pruned already, or an argument out of range.

    Example:
        >>> model = timm.create_model('deit_small_patch16_224', pretrained=True)
        >>> structure = prune(model, batches, input_ratio=0.4, hidden_ratio=0.4)
        >>> structure.sizes['blocks.0.mlp']
        (230, 921)
    """
    check_arguments(method, input_ratio, hidden_ratio, guide)
    check_compensation(compensation)
    ffns = require_dense_ffns(model)
    calibration = calibrate(
        model,
        batches,
        forward,
        ffns,
        second_moments=compensation == 'least_squares',
        image_names=image_names,
    )
    sparse = sparsify(model, calibration, input_ratio, hidden_ratio, method, guide, scale, seed)
    structure = x_transformation(sparse, input_ratio, hidden_ratio, shared_inputs)
    compensate(model, structure, calibration, compensation)
    prune_ffns(model, structure)
    return structure


def require_dense_ffns(model: nn.Module) -> list[FFN]:
    """The FFNs of ``model``.

    Raises:
        ValueError: There is none, or one has been pruned already.
    """
    ffns = find_ffns(model)
    if not ffns:
        raise ValueError(
            f'no FFN found in {type(model).__name__}: expected modules such as the FFN of mmcv or '
            'the Mlp of timm, with two linear layers'
        )
    for ffn in ffns:
        if ffn.sizes[0] < ffn.width:
            raise ValueError(
                f'{ffn.name} is pruned already, to {ffn.sizes[0]} of {ffn.width} inputs: start '
                'from the dense network'
            )
    return ffns


def check_arguments(method: str, input_ratio: float, hidden_ratio: float, guide: float) -> None:
    """Raises a ValueError that names the first argument out of its range."""
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}')
    for name, ratio in (('input_ratio', input_ratio), ('hidden_ratio', hidden_ratio)):
        try:
            kept_size(1, ratio)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
    if not 0 < guide <= 1:
        raise ValueError(f'guide must be in (0, 1], got {guide}')
