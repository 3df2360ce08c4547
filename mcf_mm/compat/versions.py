"""Check the versions of OpenMMLab and say what to install."""

import importlib.metadata
import importlib.util
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mcf_mm

#: For each import name: the supported versions, then the distributions that bring it. The
#: ``onedl-`` ones continue the original ones, which stand still since 2024.
SUPPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    'mmengine': ('>=0.10.7,<1', ('onedl-mmengine', 'mmengine', 'mmengine-lite')),
    'mmcv': ('>=2.1,<2.4', ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full')),
    'mmdet': ('>=3.3,<4', ('onedl-mmdetection', 'mmdet')),
    'mmpretrain': ('>=1.2,<2', ('onedl-mmpretrain', 'mmpretrain')),
}


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


#: Other packages that results depend on.
_OTHERS = ('torch', 'torchvision', 'timm', 'safetensors', 'numpy')


def environment() -> dict[str, str]:
    """Return the versions of mcf_mm, Python and what results depend on; none for what is missing.

    A package of OpenMMLab is under its import name, whichever distribution brings it.
    """
    found = {'mcf_mm': mcf_mm.__version__, 'Python': platform.python_version()}
    names = {name: (name,) for name in _OTHERS}
    names |= {name: distributions for name, (_, distributions) in SUPPORTED.items()}
    for name, distributions in names.items():
        versions = (installed_version(distribution) for distribution in distributions)
        if version := next(filter(None, versions), None):
            found[name] = version
    return found


def openmmlab_problems() -> list[str]:
    """List the OpenMMLab packages that are missing or have a version that is not supported.

    Reads the metadata of what is installed and imports nothing. A package that can be imported
    but has no metadata, such as a source tree on the path, is taken as it is.

    Returns:
        One phrase for each problem, empty when all is well.
    """
    problems = []
    for name, (supported, distributions) in SUPPORTED.items():
        found = {dist: version for dist in distributions if (version := installed_version(dist))}
        if not found and importlib.util.find_spec(name) is None:
            problems.append(f'{name} is missing (supported: {supported})')
        for distribution, version in found.items():
            if not SpecifierSet(supported).contains(version, prereleases=True):
                problems.append(f'{name} is {version} from {distribution} (supported: {supported})')
    return problems


def install_command(*extras: str) -> str:
    """Return the command that installs what extras of mcf_mm need.

    No package index has mcf_mm itself, so that ``pip install 'mcf-mm[extra]'`` finds nothing.

    Args:
        *extras: Names of ``[project.optional-dependencies]`` in pyproject.toml, such as ``'mm'``.

    Returns:
        ``pip install -e '.[extra]'`` in a checkout, otherwise ``pip install`` with each
        requirement.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / 'pyproject.toml').is_file():
        return f"pip install -e '.[{','.join(extras)}]' in {checkout}"
    if installed_version('mcf-mm') is None:  # the bare folder of the package on the path
        return f'install what pyproject.toml of mcf_mm lists as {" and ".join(extras)}'
    wanted = [Requirement(line) for line in importlib.metadata.requires('mcf-mm') or []]
    names = sorted(
        f"'{one.name}{one.specifier}'"
        for one in wanted
        if one.marker and any(one.marker.evaluate({'extra': extra}) for extra in extras)
    )
    return f'pip install {" ".join(names)}'


def advice(problems: Sequence[str]) -> str:
    """Say what is wrong with OpenMMLab, see :func:`openmmlab_problems`, and what to install."""
    return (
        f'mcf_mm.pruning works with torch alone, the rest of mcf_mm needs OpenMMLab: '
        f'{"; ".join(problems)}. Install supported versions with: {install_command("mm")} '
        '(not beside the original OpenMMLab packages, which it would overwrite)'
    )


def require_openmmlab() -> None:
    """Check that all of OpenMMLab is there in supported versions; :mod:`mcf_mm.registry` does.

    Raises:
        ImportError: A package is missing or has a version that is not supported.
    """
    if problems := openmmlab_problems():
        # MMEngine hides an ImportError of the registry that it looks up for type='mcf_mm.X' and
        # ends with a KeyError that gives no reason: the warning gives it.
        warnings.warn(advice(problems), stacklevel=2)
        raise ImportError(advice(problems))


def build_operators_advice() -> str:
    """Say which operators of mmcv are available and how to get the others.

    The command is for the mmcv that is installed.
    """
    lite = installed_version('mmcv-lite')
    # mmcv-lite is mmcv without operators, whatever it is built with.
    package = f'mmcv=={lite} (after: pip uninstall mmcv-lite)' if lite else 'onedl-mmcv'
    return (
        'mmcv was installed without compiled operators and mcf_mm stands in for nms and RoIAlign '
        '(average) only. Build mmcv with operators: MMCV_WITH_OPS=1 pip install --no-deps '
        f'--no-build-isolation --force-reinstall --no-binary :all: {package}; needs a C++ '
        'compiler, and nvcc for operators on the GPU'
    )
