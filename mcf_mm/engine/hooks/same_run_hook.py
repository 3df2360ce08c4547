"""Refuses to resume from a checkpoint of another run."""

from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mcf_mm.engine.resume import check_settings, plain_settings
from mcf_mm.registry import HOOKS, split_type
from mcf_mm.weights.slim_config import PRUNING_HOOKS

STATE = 'mcf_mm_run'
#: Parts of a config that decide which weights a run ends with. Where they lie on a disk, how many
#: workers load images and how often is validated does not.
PARTS = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'randomness',
)
FREE = ('num_workers', 'persistent_workers', 'pin_memory', 'val_interval', 'val_begin', 'data_root')
#: Hooks that change weights, with their settings; a pruning hook compares its own.
HOOKS_OF_WEIGHTS = ('EMAHook', 'TeacherHook', 'HoldZerosHook', 'EpochSeedHook')


@HOOKS.register_module()
class SameRunHook(Hook):
    """Keeps in each checkpoint what decides the result of the run, and compares it on ``--resume``.

    Model, training data (its number of images and its classes too), optimizer, schedules, length,
    seed and the hooks that change weights must be those of the run that is resumed; a longer
    ``max_epochs`` is another schedule. ``tools/train.py`` adds this hook to
    every run. Checkpoints without its note are taken as they are, and the log says so.

    Raises:
        ValueError: A checkpoint to resume from is of another run, the message names what differs;
            or it is of the middle of an epoch.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.SameRunHook')]
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Say where gradients are accumulated over the end of an epoch."""
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        number = len(runner.train_dataloader)
        if runner.train_loop.max_epochs and number % counts:
            runner.logger.warning(
                f'a run that goes on with --resume will end with other weights: an epoch has '
                f'{number} iterations, which is no multiple of accumulative_counts={counts}, and '
                'gradients that are accumulated over its end are in no checkpoint'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the settings."""
        meta = checkpoint['meta']
        # MMEngine would do an epoch again, on top of what was done of it.
        in_epoch = meta['iter'] - meta['epoch'] * len(runner.train_dataloader)
        checkpoint[STATE] = dict(hook='run', settings=settings_of(runner), in_epoch=in_epoch)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare them on ``--resume``."""
        if not runner._resume:
            return
        if STATE not in checkpoint:
            runner.logger.warning(
                'the checkpoint that is resumed does not say with which model, data and optimizer '
                'its run was started: they are not compared'
            )
            return
        check_settings('run', settings_of(runner), checkpoint[STATE])
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and checkpoint[STATE].get('in_epoch'):
            raise ValueError(
                f'{runner._load_from} was written before its epoch ended (iteration '
                f'{checkpoint["meta"]["iter"]}), from where no run can go on: resume from one of '
                'the end of an epoch, which by_epoch=True of the CheckpointHook writes'
            )


def settings_of(runner: Runner) -> dict[str, Any]:
    """What decides the result of a run: its config, and what lies in the folder of its data."""
    dataset = runner.train_dataloader.dataset
    classes = getattr(dataset, 'metainfo', {}).get('classes') or ()
    found = {'number of training images': len(dataset), 'classes': ', '.join(map(str, classes))}
    return {**deciding(runner.cfg), **found}


def deciding(cfg: Config) -> dict[str, Any]:
    """What decides the result of a run, one plain value for each leaf of the config."""
    leaves: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                if key not in FREE:
                    walk(f'{name}.{key}', part)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                walk(f'{name}.{number}', part)
        else:
            leaves[name] = value

    for part in PARTS:
        walk(part, plain_settings(value=cfg.get(part))['value'])
    for hook in cfg.get('custom_hooks') or []:
        kind = split_type(hook['type'])[1]
        if kind in HOOKS_OF_WEIGHTS:
            walk(kind, plain_settings(value=hook)['value'])
        elif kind in PRUNING_HOOKS:
            leaves['pruning hook'] = kind
    return leaves
