"""One-shot pruning of a checkpoint, the work of ``tools/prune.py``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import track_iter_progress
from torch import nn

from mcf_mm.analysis.complexity import Complexity, count_complexity
from mcf_mm.analysis.report import write_report
from mcf_mm.engine.calibration_data import (
    calibration_loader,
    forward_and_loss,
    image_names,
    tensor_forward,
)
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import MCF, Criterion, Sizes, build_criterion, calibrate, prune
from mcf_mm.pruning.criteria.regular import check_last_step, held_masks, hold
from mcf_mm.pruning.prune import Ratios, require_units, resolve_policy
from mcf_mm.weights.checkpoint import load_weights
from mcf_mm.weights.slim_config import write_slim


def prune_checkpoint(
    cfg: Config,
    checkpoint: str,
    out_dir: str | Path,
    num_images: int = 1024,
    seed: int = 0,
    criterion: Any = 'mcf',
    ratios: Ratios | None = None,
    sizes: Sizes | str | None = None,
    last_step: str = 'x_transformation',
    compensation: str = 'none',
    multiple: int = 1,
) -> Path:
    """Prune a trained network and write the slim checkpoint, its config and a report.

    Args:
        cfg: Config of the dense network, with a training set.
        checkpoint: Its weights.
        out_dir: Folder for ``slim.safetensors``, ``slim.py`` and ``report/``.
        num_images: Calibration images. Defaults to 1024.
        seed: Chooses them. Defaults to 0.
        criterion: See :func:`mcf_mm.pruning.prune`. Defaults to ``'mcf'``.
        ratios: See :func:`mcf_mm.pruning.prune`.
        sizes: See :func:`mcf_mm.pruning.prune`.
        last_step: ``'fis'`` and ``'crs'`` end MCF early: ``masked.safetensors`` has the full size
            and zeros. Defaults to ``'x_transformation'``.
        compensation: See :func:`mcf_mm.pruning.prune`. Defaults to ``'none'``.
        multiple: See :func:`mcf_mm.pruning.prune`. Defaults to 1.

    Returns:
        Path of the slim checkpoint.

    Raises:
        ValueError: See :func:`mcf_mm.pruning.prune`; the checkpoint is not one of this network.
    """
    check_last_step(last_step, compensation)
    criterion_settings, criterion = criterion, build_criterion(criterion)
    model = build_model(cfg)
    policy = resolve_policy(require_units(model), ratios, sizes, multiple)
    load_weights(model, checkpoint)
    model.to(get_device())
    loader = calibration_loader(cfg, num_images, seed)
    shape = input_shape(cfg)
    before, full = count_complexity(model, shape), require_units(model).sizes
    batches = track_iter_progress((iter(loader), len(loader)))
    facts = dict(
        origin=str(checkpoint),
        criterion=criterion_settings,
        last_step=last_step,
        compensation=compensation,
        multiple=multiple,
        num_images=len(loader.dataset),
        seed=seed,
    )
    if isinstance(ratios, Mapping):
        facts['ratios'] = dict(ratios)
    dataset = loader.dataset.dataset
    if last_step != 'x_transformation':
        _apply_masks(model, batches, criterion, policy)
        path = write_slim(model, cfg, out_dir, facts, dataset, 'masked')
        return _told(path, before, before)
    forward, loss = forward_and_loss(model, criterion.observers(require_units(model), policy))
    structure = prune(
        model,
        batches,
        criterion,
        sizes=policy,
        compensation=compensation,
        forward=forward,
        image_names=image_names,
        loss=loss,
    )
    after = count_complexity(model, shape)
    path = write_slim(model, cfg, out_dir, facts, dataset)
    write_report(Path(out_dir) / 'report', structure, full, criterion.importance, before, after)
    return _told(path, before, after)


def _apply_masks(model: nn.Module, batches: Any, criterion: Criterion, policy: Sizes) -> None:
    """Set to zero what FIS and CRS do not keep (eq. 4)."""
    if not isinstance(criterion, MCF):
        raise ValueError(f"last_step is for the criterion 'mcf', got {type(criterion).__name__}")
    units = require_units(model)
    criterion.prepare(model)
    observers = criterion.observers(units, policy)
    seen = calibrate(model, batches, observers, tensor_forward(model), image_names)
    hold(held_masks(units, criterion.sparsify(units, policy, seen)))


def _told(path: Path, before: Complexity, after: Complexity) -> Path:
    print(
        f'\nparameters {before.params / 1e6:.3f} M -> {after.params / 1e6:.3f} M, '
        f'MACs {before.macs / 1e9:.3f} G -> {after.macs / 1e9:.3f} G\n'
        f'wrote {path} and {path.with_suffix(".py")}'
    )
    return path
