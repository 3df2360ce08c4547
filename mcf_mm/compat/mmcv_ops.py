"""Stand in for ``mmcv._ext``, the compiled operators that mmcv may have been installed without.

``mmcv.ops`` cannot be imported without them, nor the original mmdet without ``mmcv.ops``. After
``import mcf_mm`` it can. Non-maximum suppression and RoIAlign (average) run on torchvision's
kernels. Every other operator raises ``NotImplementedError``, which names it and the cure, when it
is called. Compiled operators are always preferred.

What this means for code of others with a fallback:

- ``try: import mmcv.ops`` or ``try: from mmcv.ops import X`` succeeds, so the fallback is not
  taken. That is right for nms, RoIAlign and whatever mmcv computes in plain PyTorch, such as
  deformable attention on a CPU. Anything else, such as deformable attention or mmdet's focal loss
  on a GPU, fails at its first call, not at the import. The fallbacks of onedl-mmdetection do the
  same: they raise ``RuntimeError``, of which ``NotImplementedError`` is a kind.
- A fallback that is a real substitute is lost. To keep it, import that code before ``mcf_mm``, or
  build mmcv's operators.
- ``mmcv_full_available()`` of MMEngine says True.
- ``hasattr(mmcv._ext, name)`` is True for the operators of the installed mmcv and False for any
  other name.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType


def operator_names(folder: str) -> set[str]:
    """List the operators of an mmcv: those that its ``load_ext('_ext', [...])`` calls ask for.

    The names differ between mmcv 2.1 and 2.3 and between the original and ``onedl-mmcv``, and
    ``load_ext`` asserts that each one is there. So they are read in the sources.

    Args:
        folder: Folder of the package ``mmcv``.

    Returns:
        Their names, empty when there are no sources.
    """
    import re
    from pathlib import Path

    request = re.compile(r"""load_ext\(\s*['"]_ext['"],\s*\[(.*?)\]""", re.DOTALL)
    return {
        name
        for file in Path(folder, 'ops').glob('*.py')
        for names in request.findall(file.read_text(encoding='utf-8'))
        for name in re.findall(r"""['"](\w+)['"]""", names)
    }


def _missing_operator(name: str) -> Callable:
    def operator(*args, **kwargs):
        from mcf_mm.compat.versions import build_operators_advice

        raise NotImplementedError(
            f'the mmcv operator {name!r} cannot run: {build_operators_advice()}'
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


class _OperatorLoader:
    """Fill ``mmcv._ext`` with the operators of the mmcv in ``folder``."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the creation to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        names = operator_names(self.folder)
        if not names:
            raise ImportError(
                f'no load_ext call found in {self.folder}/ops: mcf_mm reads the names of '
                "mmcv's operators there and needs the sources of mmcv",
                name=module.__name__,
            )
        from mcf_mm.compat.mmcv_kernels import KERNELS

        module.__doc__ = __doc__
        for name in names:
            setattr(module, name, KERNELS.get(name) or _missing_operator(name))


class _OperatorFinder:
    """Find ``mmcv._ext`` when nobody else has found it."""

    # No base class: importlib.abc takes longer to import than all of this.
    def find_spec(
        self, fullname: str, path: Iterable[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = next(iter(path or ()), None)
        if fullname != 'mmcv._ext' or folder is None:
            return None
        return ModuleSpec(fullname, _OperatorLoader(folder), origin=__file__)


def install_operator_stand_in() -> None:
    """Let ``mmcv.ops`` be imported where mmcv has no compiled operators.

    The finder goes to the end of ``sys.meta_path``, so that compiled operators are preferred.
    Nothing is imported before mmcv asks for it.
    """
    if not any(isinstance(finder, _OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(_OperatorFinder())


def has_operators() -> bool:
    """Whether mmcv has compiled operators, and not the stand-in."""
    spec = importlib.util.find_spec('mmcv._ext')
    return spec is not None and spec.origin != __file__
