"""Commands of setuptools that put configs and scripts into sdist and wheel; see pyproject.toml.

No part of mcf_mm when it runs. OpenMMLab's packages have both in a folder ``.mim``, where ``mim``
looks; its name is none of a package, so setuptools needs to be told in code.
"""

import os
import shutil
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

MIM = 'mcf_mm/.mim'
#: Set up a checkout or run in one: of no use in a wheel.
OF_A_CHECKOUT = {'.sh', '.txt'}


def shipped_files() -> list[str]:
    """Return the files for ``.mim``, seen from the top of the checkout."""
    found = [path for folder in ('configs', 'tools') for path in Path(folder).rglob('*')]
    return ['model-index.yml'] + sorted(
        path.as_posix() for path in found if path.is_file() and '__pycache__' not in path.parts
    )


class BuildPy(build_py):
    """Copies configs and scripts to ``mcf_mm/.mim``.

    Not for an editable install, where :func:`mcf_mm.shipped.shipped` finds those of the checkout.
    Links to them, as OpenMMLab makes, would let mim find each config twice there and stop.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        # build/ is kept between builds: what has left the tree must leave the wheel too.
        shutil.rmtree(os.path.join(self.build_lib, MIM), ignore_errors=True)
        for target, source in self._mim_mapping().items():
            self.mkpath(os.path.dirname(target))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return what is built; setuptools asks."""
        return [*super().get_outputs(include_bytecode), *self._mim_mapping()]

    def get_source_files(self) -> list[str]:
        """Return what the sdist needs for it; setuptools asks."""
        return [*super().get_source_files(), *shipped_files()]

    def _mim_mapping(self) -> dict[str, str]:
        if self.editable_mode:
            return {}
        files = [name for name in shipped_files() if Path(name).suffix not in OF_A_CHECKOUT]
        return {os.path.join(self.build_lib, MIM, name): name for name in files}


class SDist(sdist):
    """Leaves out the tests, of which setuptools would take those that match ``tests/test*.py``."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [f for f in files if Path(f).parts[0] != 'tests'])
