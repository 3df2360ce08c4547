"""Training from a config, the work of ``tools/train.py``."""

import math
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.config import hook_types
from mcf_mm.engine.resume import make_resumable, resume, resume_limits
from mcf_mm.engine.runner import build_runner, require_supported_parallelism, start_cpu_processes
from mcf_mm.pruning.structure import check_whole
from mcf_mm.registry import split_type
from mcf_mm.weights.slim_config import PRUNING_HOOKS


def train(cfg: Config, go_on: str | None = None) -> Runner:
    """Train a classifier of mmpretrain or a detector of mmdet, so that it can go on after a kill.

    Args:
        cfg: Config of the run, changed in place.
        go_on: Checkpoint to go on from; ``'latest'`` is that of the work directory, if there is
            one. Defaults to None: from the beginning.

    Returns:
        The Runner, with the trained network.

    Raises:
        ValueError: See :func:`mcf_mm.engine.runner.build_runner` and
            :func:`mcf_mm.engine.resume.resume`.
    """
    if set(PRUNING_HOOKS) & set(hook_types(cfg)):
        # The hook says so too, but MMEngine would first ask for DeepSpeed or shard the model.
        require_supported_parallelism(cfg)
    start_cpu_processes(cfg)
    make_resumable(cfg)
    for reason in resume_limits(cfg):
        print(f'a run that goes on with --resume will end with other weights: {reason}')
    if go_on:
        resume(cfg, None if go_on == 'latest' else go_on)
    runner = build_runner(cfg)
    runner.train()
    return runner


def scale_schedule(cfg: Config, epochs: int, steps: int | None = None) -> list[str]:
    """Give the training of a config another number of epochs, its learning rates with it.

    Times of schedulers are scaled by what the epochs are of those of the config, so that a warm-up
    stays the same share of the run and a decay ends where the run does. A scheduler of which less
    than an epoch remains (less than a step, where it counts in steps in the end) is left out.
    Epochs in settings of hooks are left alone.

    Args:
        cfg: Config of a run by epochs, changed in place.
        epochs: How many it is to have.
        steps: Steps of an epoch. Defaults to None: not known, and a scheduler in epochs that
            MMEngine turns into steps stays.

    Returns:
        What is left out, a line each.

    Raises:
        ValueError: The config has no training by epochs or several optimizers, or ``epochs`` is not
            positive.
    """
    check_whole('epochs', epochs, 1)
    loop = cfg.get('train_cfg') or {}
    if not loop.get('max_epochs'):
        raise ValueError(
            f'{cfg.filename or "the config"} does not train by epochs (train_cfg has no '
            f'max_epochs), so it cannot be given epochs={epochs}: set train_cfg.max_iters'
        )
    share = epochs / loop['max_epochs']
    loop['max_epochs'] = epochs
    loop['val_interval'] = min(loop.get('val_interval', 1), epochs)
    if loop.get('val_begin', 1) > epochs:
        loop.pop('val_begin')
    loop.pop('dynamic_intervals', None)
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:
        raise ValueError(
            f'param_scheduler is for several optimizers, {", ".join(schedulers)}: its times cannot '
            f'be scaled to epochs={epochs}; set them one by one'
        )
    kept, notes = [], []
    for scheduler in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
        if _scaled(scheduler, share, epochs, steps):
            kept.append(scheduler)
        else:
            notes.append(
                f'{scheduler["type"]} of param_scheduler is left out: {epochs} epochs leave '
                'nothing of it'
            )
    if schedulers:
        cfg.param_scheduler = kept
    return notes


def shorten_schedule(cfg: Config, epochs: int, steps: int) -> list[str]:
    """As :func:`scale_schedule`, with one evaluation, at the end, and one checkpoint."""
    notes = scale_schedule(cfg, epochs, steps)
    cfg.train_cfg['val_interval'] = epochs
    cfg.train_cfg.pop('val_begin', None)
    hooks = cfg.get('default_hooks') or {}
    if hooks.get('checkpoint'):
        hooks['checkpoint'].update(interval=1, max_keep_ckpts=1)
        hooks['checkpoint'].pop('save_best', None)
    return notes


def _scaled(scheduler: dict, share: float, epochs: int, steps: int | None) -> bool:
    """Scale the times of a scheduler, in place; whether anything of it is left."""
    by_epoch = scheduler.get('by_epoch', True)
    # MMEngine turns these into iterations, which need no whole epochs.
    whole = not (by_epoch and scheduler.get('convert_to_iter_based', False))

    def scaled(value: float) -> float:
        return round(value * share) if whole else value * share

    begin = scheduler['begin'] = scaled(scheduler.get('begin', 0))
    end = scheduler.get('end')
    if end is not None:
        end = scheduler['end'] = min(scaled(end), epochs) if by_epoch else scaled(end)
    length = (epochs if by_epoch else math.inf) if end is None else end
    steps_of_one = 1 if whole else math.inf if steps is None else steps
    if (length - begin) * steps_of_one < 1:
        return False
    for name in ('T_max', 'step_size', 'total_steps'):
        if scheduler.get(name) is not None:
            scheduler[name] = max(1, scaled(scheduler[name])) if whole else scaled(scheduler[name])
    if scheduler.get('periods') is not None:
        scheduler['periods'] = [max(1, round(value * share)) for value in scheduler['periods']]
    if split_type(scheduler['type'])[1].startswith('Exponential'):
        scheduler['gamma'] = scheduler['gamma'] ** (1 / share)
    if 'milestones' in scheduler:
        scheduler['milestones'] = [max(1, round(value * share)) for value in scheduler.milestones]
    return True
