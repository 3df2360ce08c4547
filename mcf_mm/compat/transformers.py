"""Switch off mmpretrain's multimodal networks beside a transformers that is too new for them.

mmpretrain checks that transformers is new enough, not that it is too new. Then importing
``mmpretrain.models`` fails, for a plain classifier too. mmpretrain has a switch for an absent
transformers; this module sets it.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_DEPENDENCY = 'mmpretrain.utils.dependency'


def transformers_limit() -> str:
    """Return the first version of transformers that the installed mmpretrain cannot use.

    Both import ``find_pruneable_heads_and_indices``: onedl-mmpretrain from
    ``transformers.pytorch_utils``, where version 5 removed it, the original from
    ``transformers.modeling_utils``, which passed it on up to 4.55.
    """
    from mcf_mm.compat.versions import installed_version

    return '5' if installed_version('onedl-mmpretrain') else '4.56'


def transformers_is_too_new() -> bool:
    """Check whether transformers is installed and at or above :func:`transformers_limit`."""
    from packaging.version import Version

    from mcf_mm.compat.versions import installed_version

    version = installed_version('transformers')
    # A release candidate of the limit counts as the limit.
    return version is not None and Version(version) >= Version(f'{transformers_limit()}.dev0')


def _switch_off_multimodal(dependency: ModuleType) -> None:
    """Set the switch in ``mmpretrain.utils.dependency`` where it is needed."""
    if not dependency.WITH_MULTIMODAL or not transformers_is_too_new():
        return

    def register_placeholders(names: Sequence[str], registry: Any) -> None:
        def refuse(*args, **kwargs):
            from mcf_mm.compat.versions import installed_version

            raise ImportError(
                "mmpretrain's multimodal networks and datasets cannot be used with transformers "
                f'{installed_version("transformers")}. Install an older one: '
                f"pip install 'transformers<{transformers_limit()}'"
            )

        for name in names:
            registry.register_module(name=name, module=refuse)

    dependency.WITH_MULTIMODAL = False
    dependency.register_multimodal_placeholder = register_placeholders


class _DependencyLoader(SourceFileLoader):
    """Load ``mmpretrain.utils.dependency``, then set its switch."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _switch_off_multimodal(module)


class _DependencyFinder:
    """Give ``mmpretrain.utils.dependency`` the loader above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _DEPENDENCY:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _DependencyLoader(fullname, spec.loader.path)
        return spec


def tolerate_new_transformers() -> None:
    """Let ``mmpretrain.models`` be imported beside a transformers that it does not know yet.

    Changes nothing where mmpretrain and transformers fit together, and imports nothing.
    """
    if dependency := sys.modules.get(_DEPENDENCY):
        if 'mmpretrain.models' not in sys.modules:
            _switch_off_multimodal(dependency)
    elif not any(isinstance(finder, _DependencyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DependencyFinder())
