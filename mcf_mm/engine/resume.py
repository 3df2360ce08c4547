"""Lets a killed run go on, with the weights that it would have had."""

import re
import zipfile
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mcf_mm.engine.config import hook_types


def make_resumable(cfg: Config) -> None:
    """Adds the hooks that :func:`resume` relies on.

    Args:
        cfg: Config of a training run, changed in place.
    """
    if 'EpochSeedHook' not in hook_types(cfg):
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mcf_mm.EpochSeedHook')]
    hooks = cfg.get('default_hooks') or {}
    # MMEngine adds a CheckpointHook where a config does not speak of one.
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint and checkpoint['type'] in ('CheckpointHook', 'mmengine.CheckpointHook'):
        hooks['checkpoint'] = dict(checkpoint, type='mcf_mm.AtomicCheckpointHook')
    cfg.default_hooks = hooks


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
