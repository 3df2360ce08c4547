"""Prune vision transformers inside OpenMMLab, or with torch alone.

``import mcf_mm`` is silent and loads neither torch nor OpenMMLab: the names below are imported
when they are first used.

Attributes:
    prune: Prune a model in one shot, :func:`mcf_mm.pruning.prune`. Needs torch alone.
    find_units: List the prunable parts of a model, :func:`mcf_mm.pruning.find_units`. Needs torch
        alone.
    to_timm: Load a slim checkpoint as a timm model, :func:`mcf_mm.weights.timm.to_timm`. Needs
        torch and timm.
    register: Make ``type='mcf_mm.X'`` known to MMEngine. Needs OpenMMLab.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcf_mm.compat.mmcv_ops import install_operator_stand_in
from mcf_mm.compat.onedl import quiet_onedl
from mcf_mm.compat.transformers import tolerate_new_transformers

if TYPE_CHECKING:
    from mcf_mm.pruning import find_units, prune
    from mcf_mm.weights.timm import to_timm

__version__ = '0.1.0'  # a literal: pyproject.toml reads it without importing

__all__ = ['find_units', 'prune', 'register', 'to_timm']

_MODULES = {
    'find_units': 'mcf_mm.pruning',
    'prune': 'mcf_mm.pruning',
    'to_timm': 'mcf_mm.weights.timm',
}

# Each puts a finder into sys.meta_path. They must be there before mmcv.ops or mmpretrain.models is
# imported, so they cannot wait for the registry.
install_operator_stand_in()
tolerate_new_transformers()
quiet_onedl()


def register() -> None:
    """Register everything with MMEngine: ``type='mcf_mm.X'`` and ``.safetensors`` checkpoints.

    Imports :mod:`mcf_mm.registry`, as ``custom_imports=dict(imports=['mcf_mm.registry'])`` does
    in a config. May be called more than once.

    Raises:
        ImportError: An OpenMMLab package is missing or has a version that is not supported.
    """
    import_module('mcf_mm.registry')


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
