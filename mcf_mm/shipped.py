"""Find the configs and scripts that come with mcf_mm."""

import sys
from pathlib import Path

#: Scripts whose command has a shorter name than the file.
SHORT = {'convert_checkpoint': 'convert', 'export_onnx': 'export'}


def places(name: str) -> list[Path]:
    """Return where the folder ``configs`` or ``tools`` may be, the first that counts first.

    An installed package has both in ``mcf_mm/.mim``, as OpenMMLab's have. In a checkout, and so in
    an editable install, they are beside the package.
    """
    package = Path(__file__).resolve().parent
    return [package / '.mim' / name, package.parent / name]


def shipped(name: str) -> Path:
    """Return the folder ``configs`` or ``tools``.

    Args:
        name: ``'configs'`` or ``'tools'``.

    Raises:
        FileNotFoundError: It is in none of its :func:`places`.
    """
    for place in places(name):
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f'no {name} of mcf_mm, neither {" nor ".join(map(str, places(name)))}: install the wheel, '
        'or work in a whole checkout'
    )


def command_name(tool: str) -> str:
    """Return the name after ``mcf-mm`` of a script: ``'new-detector'`` of ``'new_detector'``."""
    return SHORT.get(tool, tool.replace('_', '-'))


def command(tool: str) -> str:
    """Return how to start a script, in the way in which this process was started.

    Args:
        tool: Name of the script without its ending, such as ``'train'``.

    Returns:
        ``'python tools/train.py'`` after ``python tools/prune.py``, otherwise ``'mcf-mm train'``.
    """
    folder = Path(sys.argv[0]).parent
    if folder.resolve() in places('tools'):
        return f'python {(folder / tool).as_posix()}.py'
    return f'mcf-mm {command_name(tool)}'
