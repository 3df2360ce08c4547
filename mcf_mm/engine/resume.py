"""Lets a killed run go on, with the weights that it would have had."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mcf_mm.engine.config import hook_types
from mcf_mm.registry import split_type

#: MMEngine's own, by scope and name.
CHECKPOINT_HOOKS = (('', 'CheckpointHook'), ('mmengine', 'CheckpointHook'))


def make_resumable(cfg: Config) -> None:
    """Adds the hooks that :func:`resume` relies on.

    Args:
        cfg: Config of a training run, changed in place.
    """
    for name in ('EpochSeedHook', 'SameRunHook'):
        if name not in hook_types(cfg):
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=f'mcf_mm.{name}')]
    hooks = cfg.get('default_hooks') or {}
    # MMEngine adds a CheckpointHook where a config does not speak of one.
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint and split_type(checkpoint['type']) in CHECKPOINT_HOOKS:
        hooks['checkpoint'] = dict(checkpoint, type='mcf_mm.AtomicCheckpointHook')
    cfg.default_hooks = hooks


def resume_limits(cfg: Config) -> list[str]:
    """Why a run that was killed would not go on to the weights that it would have had.

    Args:
        cfg: Config of a training run.

    Returns:
        One phrase for each reason, empty where ``--resume`` ends with the same weights.
    """
    limits = []
    loop = cfg.get('train_cfg') or {}
    if (
        not loop.get('by_epoch', True)
        or split_type(loop.get('type', ''))[1] == 'IterBasedTrainLoop'
    ):
        limits.append(
            'it counts in iterations, and random draws (augmentation, dropout, drop path) are '
            'seeded by epoch'
        )
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not checkpoint.get('by_epoch', True) and not limits:
        limits.append(
            'its checkpoints are by iteration (by_epoch=False), and a run can '
            'go on from the end of an epoch alone'
        )
    if (cfg.get('randomness') or {}).get('seed') is None:
        limits.append('randomness has no seed')
    return limits


def resume(cfg: Config, checkpoint: str | None = None) -> None:
    """Lets a run go on from a checkpoint, or start where there is none yet.

    MMEngine's own search would take a damaged file, and start from random weights instead of
    ``load_from`` where there is none.

    Args:
        cfg: Config of the run, changed in place.
        checkpoint: Where to go on. Defaults to the newest whole one in the work directory.

    Raises:
        ValueError: The checkpoint is damaged, or all those in the work directory are.
    """
    found = checkpoint or latest_checkpoint(cfg.work_dir)
    if checkpoint and Path(checkpoint).is_file() and not is_whole(Path(checkpoint)):
        raise ValueError(f'{checkpoint} is damaged: it is not a whole file of torch.save')
    cfg.resume = found is not None
    if found is not None:
        cfg.load_from = found
    else:
        print_log(f'no checkpoint in {cfg.work_dir} yet: the run starts at its beginning')


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint that ``last_checkpoint`` names, or the newest whole one.

    Args:
        work_dir: Work directory of a run.

    Returns:
        Its path; None when there is no checkpoint.

    Raises:
        ValueError: There are checkpoints, and all are damaged.
    """
    work_dir = Path(work_dir)
    note = work_dir / 'last_checkpoint'
    # It may be empty: MMEngine writes it in place.
    named = note.read_text().strip() if note.is_file() else ''
    if '://' in named:
        return named
    if named and is_whole(Path(named)):
        return named
    folders = {work_dir, Path(named).parent} if named else {work_dir}
    found = sorted(
        (
            path
            for folder in folders
            for path in folder.glob('*.pth')
            if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
        ),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )
    whole = next(filter(is_whole, found), None)
    if whole is not None:
        print_log(f'{note} names {named or "nothing"}, which is not whole: resuming from {whole}')
        return str(whole)
    if named or found:
        raise ValueError(
            f'no whole checkpoint in {work_dir}: {", ".join(map(str, found)) or named} is missing '
            'or damaged; start without --resume, or name another checkpoint with --resume PATH'
        )
    return None


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a file of ``torch.save`` that was written to its end."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def plain_settings(**settings: Any) -> dict[str, Any]:
    """Settings of a hook as plain values, which a checkpoint can hold and compare."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if value is None or isinstance(value, str | int | float | bool):
            return value
        if isinstance(value, Path):
            return str(value)
        return getattr(value, '__qualname__', type(value).__qualname__)

    return {name: plain(value) for name, value in settings.items()}


def check_settings(hook: str, settings: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
    """Check that a checkpoint to resume from is one of a run with the same settings.

    Args:
        hook: Class of the hook.
        settings: Its settings, see :func:`plain_settings`.
        state: What the hook put into the checkpoint; None for nothing.

    Raises:
        ValueError: It is not; the message names the settings that differ.
    """
    advice = 'resume with the settings of that run, or start anew with load_from and resume=False'
    if state is None:
        raise ValueError(
            f'the checkpoint to resume from is not of a run with {hook} of this version: {advice}'
        )
    if state['hook'] != hook:
        raise ValueError(
            f'the checkpoint to resume from is of a run with {state["hook"]}: {advice}'
        )
    told = [
        f'{name} is {settings.get(name)!r} here and {state["settings"].get(name)!r} there'
        for name in {**settings, **state['settings']}
        if settings.get(name) != state['settings'].get(name)
    ]
    if told:
        of = '' if hook == 'run' else f' of {hook}'
        raise ValueError(
            f'the checkpoint to resume from is of a run{of} with other settings: '
            f'{"; ".join(told)}: {advice}'
        )
