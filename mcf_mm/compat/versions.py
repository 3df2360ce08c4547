"""The one place that knows about versions: of OpenMMLab, mmcv without operators, transformers."""

import ast
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from packaging.specifiers import SpecifierSet

#: For each import name: the supported versions, then the distributions that bring it. The
#: ``onedl-`` ones continue the original ones, which stand still since 2024.
SUPPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    'mmengine': ('>=0.10.7,<1', ('onedl-mmengine', 'mmengine', 'mmengine-lite')),
    'mmcv': ('>=2.1,<2.4', ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full')),
    'mmdet': ('>=3.3,<4', ('onedl-mmdetection', 'mmdet')),
    'mmpretrain': ('>=1.2,<2', ('onedl-mmpretrain', 'mmpretrain')),
}


def openmmlab_problems() -> list[str]:
    """Says which OpenMMLab packages are missing or have a version that is not supported.

    Reads the metadata of what is installed and imports nothing. A package that can be imported
    but has no metadata, such as a source tree on the path, is taken as it is.

    Returns:
        One phrase for each problem, empty when all is well.
    """
    problems = []
    for name, (supported, distributions) in SUPPORTED.items():
        found = {dist: version for dist in distributions if (version := _version(dist))}
        if not found and importlib.util.find_spec(name) is None:
            problems.append(f'{name} is missing (supported: {supported})')
        for distribution, version in found.items():
            if not SpecifierSet(supported).contains(version, prereleases=True):
                problems.append(f'{name} is {version} from {distribution} (supported: {supported})')
    return problems


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _advice(problems: Sequence[str]) -> str:
    return (
        f'mcf_mm.pruning works with torch alone, the rest of mcf_mm needs OpenMMLab: '
        f"{'; '.join(problems)}. Install the tested versions with: pip install 'mcf-mm[mm]' "
        '(in an environment without the original OpenMMLab packages, which it would overwrite)'
    )


def warn_about_openmmlab() -> None:
    """Warns once, by name, of the OpenMMLab packages that are missing or not supported."""
    if problems := openmmlab_problems():
        warnings.warn(_advice(problems), stacklevel=3)


def require_openmmlab() -> None:
    """Refuses to go on without OpenMMLab.

    Raises:
        ImportError: A package is missing or has a version that is not supported.
    """
    if problems := openmmlab_problems():
        raise ImportError(_advice(problems))


class _OperatorFinder(importlib.abc.MetaPathFinder):
    """Finds ``mmcv._ext`` in :mod:`mcf_mm.compat.mmcv_ops` when nobody else has found it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != 'mmcv._ext':
            return None
        return importlib.util.spec_from_file_location(
            fullname, Path(__file__).with_name('mmcv_ops.py')
        )


def build_operators_advice() -> str:
    """Says how to get the operators for the mmcv that is installed."""
    lite = _version('mmcv-lite')
    # mmcv-lite is mmcv without operators, whatever it is built with.
    package = f'mmcv=={lite} (after: pip uninstall mmcv-lite)' if lite else 'onedl-mmcv'
    return (
        'Build mmcv with operators: MMCV_WITH_OPS=1 pip install --no-deps --no-build-isolation '
        f'--force-reinstall --no-binary :all: {package}; needs a C++ compiler, and nvcc for '
        'operators on the GPU'
    )


def install_operator_stand_in() -> None:
    """Lets ``mmcv.ops`` be imported where mmcv has no compiled operators.

    The finder goes to the end of ``sys.meta_path``, so that real operators are always
    preferred; nothing is imported before mmcv asks for it.
    """
    if not any(isinstance(finder, _OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(_OperatorFinder())


def names_gone_from_transformers() -> list[str]:
    """What mmpretrain's multimodal networks import from transformers that is there no more.

    Compares the import statements of the one with the source of the other and imports neither:
    transformers takes seconds. Names that transformers' top module offers are not looked at.

    Returns:
        Dotted names, such as ``'transformers.pytorch_utils.find_pruneable_heads_and_indices'``
        (gone in version 5); empty when all is well or one of the two is not installed.
    """
    mmpretrain = importlib.machinery.PathFinder.find_spec('mmpretrain')
    transformers = importlib.machinery.PathFinder.find_spec('transformers')
    if not mmpretrain or not transformers or not mmpretrain.origin or not transformers.origin:
        return []
    gone = set()
    for file in Path(mmpretrain.origin).parent.glob('models/multimodal/**/*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('transformers.'):
                path = Path(transformers.origin).parent.joinpath(*node.module.split('.')[1:])
                source = _module_source(path)
                gone |= {
                    f'{node.module}.{alias.name}'
                    for alias in node.names
                    if _module_source(path / alias.name) is None
                    and not re.search(rf'\b{alias.name}\b', source or '')
                }
    return sorted(gone)


def _module_source(path: Path) -> str | None:
    """The source of the module or package at ``path`` (without ending), None if there is none."""
    files = (path.with_suffix('.py'), path / '__init__.py')
    return next((file.read_text(encoding='utf-8') for file in files if file.is_file()), None)


class _DependencyLoader(importlib.machinery.SourceFileLoader):
    """Loads ``mmpretrain.utils.dependency`` and corrects what it says about transformers."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _switch_off_multimodal(module)


def _switch_off_multimodal(dependency: ModuleType) -> None:
    """Sets mmpretrain's own switch when its multimodal networks cannot be imported.

    mmpretrain sees that transformers is new enough and not that it is too new; then importing
    ``mmpretrain.models`` fails, for a plain classifier too.
    """
    if not dependency.WITH_MULTIMODAL or not (gone := names_gone_from_transformers()):
        return

    def register_placeholders(names: Sequence[str], registry) -> None:
        def refuse(*args, **kwargs):
            raise ImportError(
                "mmpretrain's multimodal networks and datasets cannot be used with transformers "
                f'{_version("transformers")}, which lacks {", ".join(gone)}. Install an older one: '
                "pip install 'transformers<5'"
            )

        for name in names:
            registry.register_module(name=name, module=refuse)

    dependency.WITH_MULTIMODAL = False
    dependency.register_multimodal_placeholder = register_placeholders


class _DependencyFinder(importlib.abc.MetaPathFinder):
    """Gives ``mmpretrain.utils.dependency`` the loader above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != 'mmpretrain.utils.dependency':
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _DependencyLoader(fullname, spec.loader.path)
        return spec


def tolerate_new_transformers() -> None:
    """Lets ``mmpretrain.models`` be imported beside a transformers that it does not know yet.

    Changes nothing where mmpretrain and transformers fit together, and imports nothing.
    """
    if dependency := sys.modules.get('mmpretrain.utils.dependency'):
        if 'mmpretrain.models' not in sys.modules:
            _switch_off_multimodal(dependency)
    elif not any(isinstance(finder, _DependencyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DependencyFinder())
