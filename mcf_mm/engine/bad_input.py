"""Lets a run refuse bad input with errors that name the image, the annotation or the setting."""

from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.config import hook_types
from mcf_mm.engine.networks import unwrapped
from mcf_mm.models.widths import check_widths

#: Classes whose errors may name no image or annotation, and the scopes that find them. There is
#: a class of the same name here for each.
CHECKED = {
    'CocoDataset': ('', 'mmdet'),
    'LoadImageFromFile': ('', 'mmdet', 'mmpretrain', 'mmcv', 'mmengine'),
}


def build_runner(cfg: Config) -> Runner:
    """Builds a Runner whose datasets, image loading and widths are checked.

    The config that the Runner keeps and writes stays as it was, for the inferencers of mmdet and
    mmpretrain look for ``LoadImageFromFile`` by name.

    Args:
        cfg: Config of a run; the hooks :class:`mcf_mm.FiniteLossHook` and
            :class:`mcf_mm.ClassCountHook` are added to it.

    Raises:
        ValueError: See :func:`mcf_mm.models.widths.check_widths`.
    """
    for name in ('FiniteLossHook', 'ClassCountHook'):
        if name not in hook_types(cfg):
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=f'mcf_mm.{name}')]
    runner = Runner.from_cfg(cfg)
    check_widths(unwrapped(runner), cfg.model)
    # Copies of what the config says, which MMEngine builds when a loop starts.
    for loader in (runner._train_dataloader, runner._val_dataloader, runner._test_dataloader):
        check_input(loader)
    return runner


def check_input(part: Any) -> None:
    """Takes our classes for those of :data:`CHECKED` in a part of a config, in place.

    Args:
        part: A data loader, a dataset or a list of such; anything else is left alone.
    """
    if isinstance(part, dict):
        scope, _, name = str(part.get('type')).rpartition('.')
        if scope in CHECKED.get(name, ()):
            part['type'] = f'mcf_mm.{name}'
        for value in part.values():
            check_input(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            check_input(value)
