"""Training from a config, the work of ``tools/train.py``."""

from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.config import hook_types
from mcf_mm.engine.resume import make_resumable, resume, resume_limits
from mcf_mm.engine.runner import build_runner, require_supported_parallelism, start_cpu_processes
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


def shorten_schedule(cfg: Config, epochs: int, steps: int) -> list[str]:
    """Cut the training of a config to fewer or more epochs, its learning rates with it.

    Times of schedulers are scaled by what the epochs are of those of the config, so that a warm-up
    stays the same share of the run and a decay ends where the run does. A scheduler of which less
    than an epoch remains (less than a step, where it counts in steps in the end) is left out. The
    network is evaluated once, at the end; one checkpoint is kept.

    Args:
        cfg: Config of a run by epochs, changed in place.
        epochs: How many it is to have.
        steps: Steps of an epoch.

    Returns:
        What is left out, a line each.

    Raises:
        ValueError: The config has no training by epochs.
    """
    loop = cfg.get('train_cfg') or {}
    if not loop.get('max_epochs'):
        raise ValueError(
            f'{cfg.filename or "the config"} does not train by epochs (train_cfg has no '
            'max_epochs): its schedule cannot be cut to a number of epochs'
        )
    share = epochs / loop['max_epochs']
    loop['max_epochs'] = loop['val_interval'] = epochs
    for name in ('val_begin', 'dynamic_intervals'):
        loop.pop(name, None)
    schedulers = cfg.get('param_scheduler') or []
    kept, notes = [], []
    for scheduler in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
        if not scheduler.get('by_epoch', True):
            raise ValueError(
                f'param_scheduler has a {scheduler["type"]} that counts in iterations '
                '(by_epoch=False): its schedule cannot be cut to a number of epochs'
            )
        if _scaled(scheduler, share, epochs, steps):
            kept.append(scheduler)
        else:
            notes.append(
                f'{scheduler["type"]} of param_scheduler is left out: {epochs} epochs leave '
                'nothing of it'
            )
    if schedulers:
        cfg.param_scheduler = kept
    hooks = cfg.get('default_hooks') or {}
    if hooks.get('checkpoint'):
        hooks['checkpoint'].update(interval=1, max_keep_ckpts=1)
        hooks['checkpoint'].pop('save_best', None)
    return notes


def _scaled(scheduler: dict, share: float, epochs: int, steps: int) -> bool:
    """Scale the times of a scheduler, in place; whether anything of it is left."""
    # MMEngine turns these into iterations, which need no whole epochs.
    whole = not scheduler.get('convert_to_iter_based', False)

    def scaled(value: float) -> float:
        return round(value * share) if whole else value * share

    begin = scheduler['begin'] = scaled(scheduler.get('begin', 0))
    end = scheduler.get('end')
    if end is not None:
        end = scheduler['end'] = min(scaled(end), epochs)
    length = (epochs if end is None else end) - begin
    if length * (1 if whole else steps) < 1:
        return False
    for name in ('T_max', 'step_size', 'total_steps'):
        if scheduler.get(name) is not None:
            scheduler[name] = max(1, scaled(scheduler[name])) if whole else scaled(scheduler[name])
    if 'milestones' in scheduler:
        scheduler['milestones'] = [max(1, round(value * share)) for value in scheduler.milestones]
    return True
