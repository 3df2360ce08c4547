"""Paths in what is written beside weights: none is absolute, so the folder can go elsewhere."""

import operator
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: What MMEngine puts the folder of a config file for, when it reads the file.
HERE = '{{ fileDirname }}'
#: An absolute path within an argument, such as in ``heal=epochs=2,folder=/photos``.
_PATH = re.compile(r'(?<=[=,\[(\'"])/[^,\])\'"]+')


def portable(value: Any, folder: str | Path | None = None) -> Any:
    """Rewrite the absolute paths in a value.

    A path below the current folder becomes relative to it, as paths in OpenMMLab's configs are. Of
    another path its name alone is left, or with ``folder`` the way from there.

    Args:
        value: Plain data; containers other than tuples are changed in place, all else is left
            alone.
        folder: Where the config lies that the value is for: paths below it, and those that are
            not below the current folder, begin with ``{{ fileDirname }}``. Defaults to None.

    Returns:
        The same value with other paths.
    """
    if isinstance(value, str):
        return _portable_path(value, folder) if os.path.isabs(value) else value
    if isinstance(value, Path):
        return portable(str(value), folder)
    if isinstance(value, tuple):
        parts = tuple(portable(part, folder) for part in value)
        return value if all(map(operator.is_, parts, value)) else parts
    keys: Iterable[Any] = ()
    if isinstance(value, list):
        keys = range(len(value))
    elif hasattr(value, 'keys'):
        keys = list(value.keys())
    for key in keys:
        old = value[key]
        # Only what is other: a lazy config gives out classes where it has their names.
        if (new := portable(old, folder)) is not old:
            value[key] = new
    return value


def _portable_path(path: str, folder: str | Path | None) -> str:
    """A path that says nothing of this machine; a slash at its end stays."""
    end = '/' if path.endswith('/') and path.strip('/') else ''
    current = os.getcwd()
    if folder is not None:
        folder = os.path.abspath(folder)
        if _below(path, folder):
            return _joined(HERE, os.path.relpath(path, folder)) + end
    if _below(path, current):
        return os.path.relpath(path, current) + end
    if folder is not None:
        return _joined(HERE, os.path.relpath(path, folder)) + end
    return (Path(path).name or '.') + end


def _below(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.abspath(path), folder]) == folder


def _joined(folder: str, path: str) -> str:
    return folder if path == '.' else f'{folder}/{path}'


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that was given, for somebody else to read.

    Args:
        arguments: The command. Defaults to that of this process.
    """
    arguments = ['python', *sys.argv] if arguments is None else arguments
    return shlex.join(
        portable(part)
        if os.path.isabs(part)
        else _PATH.sub(lambda found: portable(found.group()), part)
        for part in map(str, arguments)
    )
