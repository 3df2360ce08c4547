"""The whole method on a trained network: calibrate -> structure -> surgery."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mcf_mm.pruning import baselines
from mcf_mm.pruning.calibration import Calibration, calibrate
from mcf_mm.pruning.compensation import check_compensation, compensate
from mcf_mm.pruning.fis import band_limit, count_outside, guided_rows
from mcf_mm.pruning.regular import SparseFFN, x_transformation
from mcf_mm.pruning.structure import Structure, kept_size
from mcf_mm.pruning.surgery import compact_rows, prune_ffns
from mcf_mm.pruning.targets import FFN, find_classifier, find_ffns

METHODS = ('mcf', 'random', 'magnitude', 'activation')
#: Where the method may end: see table 3 of the paper.
STEPS = ('fis', 'crs', 'x_transformation')


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
    multiple: int = 1,
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
        multiple: See :func:`~mcf_mm.pruning.structure.kept_size`. Defaults to 1.

    Returns:
        Scores and masks by FFN name, in the order of the forward pass.

    Raises:
        ValueError: An argument is out of range.
    """
    check_arguments(method, input_ratio, hidden_ratio, guide, multiple=multiple)
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
            sparse[ffn.name] = SparseFFN.from_scores(
                scores, tiebreaks, input_ratio, hidden_ratio, multiple
            )
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
    multiple: int = 1,
    last_step: str = 'x_transformation',
    seed: int = 0,
    forward: Callable[[Any], Any] | None = None,
    image_names: Callable[[Any], Sequence[str]] | None = None,
    observe: Callable[[Mapping[str, SparseFFN]], None] | None = None,
) -> Structure | None:
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
        multiple: Sizes become multiples of this (ours), see
            :func:`~mcf_mm.pruning.structure.kept_size`. Defaults to 1, the paper.
        last_step: ``'fis'`` leaves a network of full size with zeros in its weights, ``'crs'``
            rows that each read inputs of their own, ``'x_transformation'`` the whole method.
            Defaults to ``'x_transformation'``.
        seed: See :func:`sparsify`. Defaults to 0.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        image_names: Names of the images of a batch, for error messages. Defaults to numbers.
        observe: Called with scores and masks by FFN name before anything is changed, for reports.
            Defaults to None.

    Returns:
        What was kept; None where ``last_step`` ends before rows agree on that.

    Raises:
        ValueError: No FFN, an FFN that is pruned already, or an argument out of range.

    Example:
        >>> model = timm.create_model('deit_small_patch16_224', pretrained=True)
        >>> structure = prune(model, batches, input_ratio=0.4, hidden_ratio=0.4)
        >>> structure.sizes['blocks.0.mlp']
        (230, 921)
    """
    check_arguments(
        method, input_ratio, hidden_ratio, guide, last_step, compensation, multiple=multiple
    )
    ffns = require_dense_ffns(model)
    calibration = calibrate(
        model,
        batches,
        forward,
        ffns,
        second_moments=compensation == 'least_squares',
        image_names=image_names,
    )
    sparse = sparsify(
        model,
        calibration,
        input_ratio,
        hidden_ratio,
        method,
        guide,
        scale,
        seed,
        multiple=multiple,
    )
    if observe is not None:
        observe(sparse)
    if last_step != 'x_transformation':
        apply_masks(model, sparse)
        if last_step == 'crs':
            compact_rows(model, {name: ffn.masks for name, ffn in sparse.items()})
        return None
    structure = x_transformation(sparse, input_ratio, hidden_ratio, shared_inputs, multiple)
    compensate(model, structure, calibration, compensation)
    prune_ffns(model, structure)
    return structure


def apply_masks(model: nn.Module, sparse: Mapping[str, SparseFFN]) -> None:
    """Sets to zero what CRS does not keep (eq. 4), in place."""
    for ffn in find_ffns(model) if sparse else ():
        if ffn.name in sparse:
            for linear, mask in zip((ffn.fc1, ffn.fc2), sparse[ffn.name].masks, strict=True):
                linear.weight.data.mul_(mask)


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
        if ffn.sizes[0] < ffn.width or ffn.selection != 'layer':
            raise ValueError(
                f'{ffn.name} is pruned already, to {ffn.sizes[0]} of {ffn.width} inputs: start '
                'from the dense network'
            )
    return ffns


def check_arguments(
    method: str,
    input_ratio: float,
    hidden_ratio: float,
    guide: float,
    last_step: str = 'x_transformation',
    compensation: str = 'none',
    multiple: int = 1,
) -> None:
    """Raises a ValueError that names the first argument out of its range."""
    if last_step not in STEPS:
        raise ValueError(f'last_step must be one of {STEPS}, got {last_step!r}')
    check_compensation(compensation)
    if compensation != 'none' and last_step != 'x_transformation':
        raise ValueError(
            f'compensation={compensation!r} needs rows that agree on what they drop: use '
            f"last_step='x_transformation', got {last_step!r}"
        )
    if multiple < 1:
        raise ValueError(f'multiple must be at least 1, got {multiple}')
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}')
    for name, ratio in (('input_ratio', input_ratio), ('hidden_ratio', hidden_ratio)):
        try:
            kept_size(1, ratio)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
    if not 0 < guide <= 1:
        raise ValueError(f'guide must be in (0, 1], got {guide}')
