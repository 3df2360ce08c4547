"""What pruning hooks do on a Runner: check, try, calibrate, cut, report."""

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.calibration_data import forward_and_loss, image_names, tensor_forward
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model, cut_networks, unwrapped
from mcf_mm.engine.report import REPORT, report_cut
from mcf_mm.models.strides import check_strides
from mcf_mm.models.widths import check_widths
from mcf_mm.pruning import (
    Seen,
    Sizes,
    Structure,
    Units,
    calibrate,
    cut,
    find_units,
)
from mcf_mm.pruning.curves import Curves
from mcf_mm.pruning.observers import ActivationObserver, Observer
from mcf_mm.pruning.sequential import solve_sequentially
from mcf_mm.weights.slim_config import slim_config

#: Scores by unit and kind, for pictures.
Importance = Mapping[str, Mapping[str, Tensor]]


def check_run(runner: Runner, hook: str) -> None:
    """Check that a run is one that can be pruned, before any time is spent.

    Args:
        runner: The run.
        hook: Name of the pruning hook, for messages.

    Raises:
        ValueError: It counts in iterations, has several optimizers, several pruning hooks or a
            teacher of its own, or its parts do not fit together.
    """
    if not runner.cfg.get('model'):
        raise ValueError(
            f'{hook} needs the config of the model, to write the one of the small network: build '
            'the Runner with Runner.from_cfg(cfg)'
        )
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        raise ValueError(
            f'{hook} counts in epochs: set train_cfg.by_epoch=True, got '
            f'{type(runner.train_loop).__name__}'
        )
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        raise ValueError(f'{hook} works with one optimizer, got several')
    model = unwrapped(runner)
    if hasattr(model, 'student') and hasattr(model, 'teacher'):
        raise ValueError(
            f'{hook} cuts one network, and {type(model).__name__} has two, student and teacher, '
            'which must stay alike: train it without the hook, then prune its teacher in one shot '
            'with tools/prune.py, or train the detector alone'
        )
    names = [type(other).__name__ for other in runner.hooks if hasattr(other, 'is_small')]
    if len(names) > 1:
        raise ValueError(f'a run can have one pruning hook, got {names}: remove all but one')
    check_widths(model, runner.cfg.model)
    check_strides(model, runner.cfg.model)


def try_cut(runner: Runner, structure: Structure, dataset: Any) -> None:
    """Cut a copy of the model and run it, so that nothing fails at surgery.

    The copy takes one step of its own optimizer dense, is cut with the optimizer's state, takes a
    step small, and is built anew from the config that will be written. Random generators are left
    as they were.

    Args:
        runner: A run before its first epoch.
        structure: Any structure of the sizes that surgery will leave.
        dataset: Calibration images with their labels; two are taken.

    Raises:
        ValueError: The network, its optimizer's state or its config cannot be cut.
    """
    with unchanged_generators():
        # One call, so that the optimizer of the copy holds the parameters of the copy.
        model, optimizer = copy.deepcopy((unwrapped(runner), runner.optim_wrapper.optimizer))
        # MMEngine's schedulers put a step of the original's there, which is not copied.
        vars(optimizer).pop('step', None)
        batch = pseudo_collate([dataset[i] for i in range(min(2, len(dataset)))])
        _check_run_by_evaluation(model, structure, batch)
        reason = _step(model, optimizer, batch)
        tried = reason is None
        if not tried:
            runner.logger.warning(
                f'surgery was not tried with a training step: the dense network gives no loss for '
                f'a calibration image ({reason})'
            )
        cut(model, structure, optimizer)
        if tried and (reason := _step(model, optimizer, batch)) is not None:
            raise ValueError(f'{type(model).__name__} cannot be trained after surgery: {reason}')
        _check_config(model, runner)


def _check_run_by_evaluation(model: nn.Module, structure: Structure, batch: dict) -> None:
    """Check that evaluation runs each unit that is to be pruned, or it could not be calibrated."""
    observers = [
        ActivationObserver(unit, kind)
        for unit in find_units(model)
        if unit.name in structure
        for kind, _ in unit.consumers()
    ]
    calibrate(model, [copy.deepcopy(batch)], observers, tensor_forward(model), image_names)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> str | None:
    """One training step; the reason where there can be none."""
    model.train()
    try:
        losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode='loss')
        loss, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return None


def _check_config(model: nn.Module, runner: Runner) -> None:
    """Check that the config which will be written builds the network that was cut."""
    cfg = slim_config(model, runner.cfg, Path(runner.work_dir) / 'slim.safetensors')
    found = {key: tuple(value.shape) for key, value in build_model(cfg).state_dict().items()}
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if wrong:
        raise ValueError(
            f'no config builds this network after surgery: {wrong[0]} would be '
            f'{found.get(wrong[0], "missing")}, not {wanted.get(wrong[0], "there")} '
            f'({len(wrong)} in all)'
        )


@contextmanager
def unchanged_generators() -> Iterator[None]:
    """Leave the random generators of Python, NumPy and torch as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def first_structure(sizes: Sizes, units: Units) -> Structure:
    """The first elements of each kind: a structure of the right sizes for a trial."""
    kept = {}
    for name, kinds in sizes.items():
        unit = units.by_name[name]
        chosen: dict[str, Tensor] = {}
        for kind in (kind for kind in unit.kinds if kind in kinds):
            groups = torch.arange(unit.groups(kind))
            if unit.groups(kind) > 1:
                groups = chosen.get('heads', groups)
            starts = groups * (unit.count(kind) // unit.groups(kind))
            chosen[kind] = (starts[:, None] + torch.arange(kinds[kind])).flatten()
        kept[name] = unit.complete(chosen)
    return Structure(kept)


def shown(runner: Runner, loader: Any) -> Iterable[Any]:
    """The batches of a loader, with a progress bar in the first process."""
    return track_iter_progress((iter(loader), len(loader))) if runner.rank == 0 else loader


def calibrate_run(
    runner: Runner,
    batches: Iterable[Any],
    observers: Sequence[Observer],
    labels: str = 'predicted',
) -> Seen:
    """Calibrate on the model of a run; its processes share the images."""
    if not observers:
        return Seen({})
    model = unwrapped(runner)
    forward, loss = forward_and_loss(model, observers)
    return calibrate(
        model,
        batches,
        observers,
        forward,
        image_names,
        shared=runner.distributed,
        loss=loss,
        labels=labels,
    )


def solve_run(
    runner: Runner,
    network: nn.Module,
    dense: Mapping[str, nn.Module],
    loader: Any,
    structure: Structure,
) -> None:
    """Solve the layers of a network of a run anew, see :func:`solve_sequentially`."""
    forward = tensor_forward(network)
    solve_sequentially(network, dense, loader, structure, forward, shared=runner.distributed)


def forget_state(runner: Runner, units: Units, kinds: Iterable[tuple[str, str]]) -> None:
    """Let the optimizer begin anew with parameters that are written in another basis."""
    state = runner.optim_wrapper.optimizer.state
    for name, kind in kinds:
        unit = units.by_name[name]
        for axis in unit.axes(kind):
            state.pop(unit.parameter(axis.parameter), None)


def cut_run(
    runner: Runner, structure: Structure, importance: Importance, curves: Curves | None = None
) -> None:
    """Cut model, optimizer and averages, and tell what it saves.

    Args:
        runner: The run.
        structure: What is kept.
        importance: Scores by unit and kind, for the report's pictures; may be empty.
        curves: Cost curves, for the report. Defaults to None.
    """
    model = unwrapped(runner)
    shape = input_shape(runner.cfg)
    before = count_complexity(model, shape)
    full = find_units(model).all_sizes
    cut_networks(runner, lambda network, optimizer: cut(network, structure, optimizer))
    after = count_complexity(model, shape)
    for unit in find_units(model).every:
        if unit.name in structure:
            kept = ' and '.join(f'{size} {kind}' for kind, size in unit.sizes.items())
            runner.logger.info(f'pruning: {unit.name} keeps {kept}')
    report(
        runner,
        'pruning: the model is small now',
        {
            'params_before': before.params,
            'params_after': after.params,
            'macs_before': before.macs,
            'macs_after': after.macs,
        },
    )
    forget_best(runner)
    if runner.rank == 0:
        report_cut(
            Path(runner.work_dir) / REPORT,
            structure,
            full,
            importance,
            before,
            after,
            curves,
            runner.visualizer,
            runner.epoch,
        )


def forget_best(runner: Runner) -> None:
    """Let ``save_best`` and EarlyStoppingHook start anew: their best score is a dense network's.

    The checkpoint of that score stays, and the log says what it is.
    """
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            hook.wait_count = 0
            hook.best_score = -float('inf') if hook.rule == 'greater' else float('inf')
        if not isinstance(hook, CheckpointHook) or not hook.save_best:
            continue
        many = len(hook.key_indicators) > 1
        for indicator in hook.key_indicators:
            end = f'_{indicator}' if many else ''
            score = runner.message_hub.pop_info(f'best_score{end}', None)
            path = runner.message_hub.pop_info(f'best_ckpt{end}', None)
            if path is not None:
                runner.logger.warning(
                    f'pruning: {path} ({indicator} {score:.4g}) is of the network before surgery; '
                    'the search for the best checkpoint starts anew'
                )
            if many:
                hook.best_ckpt_path_dict[indicator] = None
            else:
                hook.best_ckpt_path = None


def report(runner: Runner, text: str, values: Mapping[str, float]) -> None:
    """Log ``values`` and show them in the visualizer's backends, by epoch."""
    figures = ', '.join(f'{key} {value:,.6g}' for key, value in values.items())
    runner.logger.info(f'{text}: {figures}')
    scalars = {f'mcf/{key}': value for key, value in values.items()}
    runner.visualizer.add_scalars(scalars, step=runner.epoch)
