"""Keep onedl-mmdetection and onedl-mmpretrain quiet about packages that hardly anybody has.

At every start of every program they print that the client of OneDL, for data sets of that service,
is not installed, and warn of ``faster_coco_eval``. Both are meant as messages for debugging.
"""

import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from io import StringIO
from types import ModuleType

_MODULES = ('mmdet.datasets', 'mmdet.datasets.transforms', 'mmpretrain.datasets')
_LINE = 'Could not import OneDL'


class _QuietLoader(SourceFileLoader):
    """Runs the module and drops the lines about OneDL; whatever else it prints is printed."""

    def exec_module(self, module: ModuleType) -> None:
        printed = StringIO()
        try:
            with redirect_stdout(printed):
                super().exec_module(module)
        finally:
            lines = printed.getvalue().splitlines(keepends=True)
            print(*(line for line in lines if not line.startswith(_LINE)), sep='', end='')


class _QuietFinder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _QuietLoader(fullname, spec.loader.path)
        return spec


def quiet_onedl() -> None:
    """Drop the messages about OneDL and ``faster_coco_eval``; imports nothing."""
    if not any(isinstance(finder, _QuietFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietFinder())
        warnings.filterwarnings('ignore', 'faster_coco_eval is not installed', UserWarning)
