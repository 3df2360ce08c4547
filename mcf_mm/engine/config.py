"""Reads a config for the tools."""

from pathlib import Path

from mmengine.config import Config


def load_config(
    path: str, work_dir: str | None = None, options: dict | None = None, launcher: str = 'none'
) -> Config:
    """Reads a config file and applies what the command line says.

    Args:
        path: Config of mmpretrain or mmdet; its ``default_scope`` decides which.
        work_dir: Folder for logs and checkpoints. Defaults to the config's own, or
            ``work_dirs/<name of the config>``.
        options: Settings to override, ``{'train_cfg.max_epochs': 3}``. Defaults to none.
        launcher: Job launcher, as in MMEngine. Defaults to ``'none'``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The config does not say its ``default_scope``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no config file {path}')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    if not cfg.get('default_scope'):
        raise ValueError(
            f'{path} has no default_scope: inherit the default_runtime of mmpretrain or mmdet, or '
            "set default_scope='mmpretrain' or 'mmdet'"
        )
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) > 0:
            # Starting workers anew each epoch costs seconds; mmpretrain's bases do not say so.
            loader.setdefault('persistent_workers', True)
    return cfg


def hook_types(cfg: Config) -> list[str]:
    """Class names of the custom hooks in a config, without scope."""
    return [hook['type'].rpartition('.')[2] for hook in cfg.get('custom_hooks') or []]
