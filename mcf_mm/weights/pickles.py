"""Files of ``torch.save``, read without running code from them.

Such a file is a pickle, a program that may call any function. torch's ``weights_only`` calls those
that rebuild tensors; a training checkpoint of MMEngine needs a few more, which are allowed here.
NumPy's own and ``getattr`` would hand over the interpreter or the memory of the process, so
stand-ins with the same result take their place. torch alone is needed.
"""

import argparse
import codecs
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

#: ``1`` reads any pickle: code in a file runs.
TRUST = 'MCF_MM_TRUST_PICKLE'
_HISTORY, _CONFIG = 'mmengine.logging.history_buffer', 'mmengine.config.config'
#: torch takes names for stand-ins since 2.6. Older versions get an unpickler of ours.
_TORCH_TAKES_NAMES = tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 6)


def load_pickle(path: str | Path, map_location: Any = 'cpu') -> Any:
    """Reads a file of ``torch.save``.

    Args:
        path: File with tensors, plain values, and what MMEngine's checkpoints and the options of
            DeiT's and YOLOS's training scripts hold: ``HistoryBuffer``, ``ConfigDict``, arrays and
            numbers of NumPy, ``argparse.Namespace``.
        map_location: As for :func:`torch.load`. Defaults to ``'cpu'``.

    Raises:
        ValueError: The file is damaged, is no checkpoint, or asks for other functions or classes.
            With ``MCF_MM_TRUST_PICKLE=1`` in the environment they are called.
    """
    try:
        if os.environ.get(TRUST) == '1':
            return torch.load(path, map_location=map_location, weights_only=False)
        if _TORCH_TAKES_NAMES:
            allowed = [(stand_in, name) for name, stand_in in _allowed().items()]
            with torch.serialization.safe_globals(allowed):
                loaded = torch.load(path, map_location=map_location, weights_only=True)
        else:
            loaded = _load_with_old_torch(path, map_location)
        return _with_arrays(loaded)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(_reason(Path(path), error)) from error


def _load_with_old_torch(path: str | Path, map_location: Any) -> Any:
    """The same where torch has no list to add to."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        unpickler = SimpleNamespace(
            __name__='pickle', Unpickler=_Unpickler, load=_Unpickler.load_file
        )
        return torch.load(
            path, map_location=map_location, weights_only=False, pickle_module=unpickler
        )


def _allowed() -> dict[str, Callable]:
    """What a checkpoint may ask for, beyond torch's own list, and what it gets."""
    numpy = {
        f'{package}.multiarray.{name}': stand_in
        for package in ('numpy.core', 'numpy._core')
        for name, stand_in in (('_reconstruct', _empty_array), ('scalar', _scalar))
    }
    # Where MMEngine is not imported nobody looks at its log.
    history = getattr(sys.modules.get(_HISTORY), 'HistoryBuffer', _Unread)
    config = getattr(sys.modules.get(_CONFIG), 'ConfigDict', dict)
    return {
        **numpy,
        'numpy.dtype': _DType,
        'numpy.ndarray': _Array,
        f'{_HISTORY}.HistoryBuffer': history,
        f'{_CONFIG}.ConfigDict': config,
        'builtins.getattr': _statistic,
        'builtins.bytes': _no_bytes,
        'argparse.Namespace': argparse.Namespace,
    }


class _Unread:
    """Takes the state of an object that is not wanted."""

    def __setstate__(self, state: Any) -> None:
        pass


def _statistic(owner: Any, name: str) -> Callable:
    """Stands in for ``getattr``, with which a ``HistoryBuffer`` names the statistics it offers.

    The true ``getattr`` leads from itself to ``exec``.
    """
    if owner is not _allowed()[f'{_HISTORY}.HistoryBuffer']:
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    if owner is _Unread:
        return _Unread
    if name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL {_HISTORY}.HistoryBuffer.{name}')
    return getattr(owner, name)


class _DType:
    """Stands in for ``numpy.dtype``: numbers and strings.

    A pickled dtype sets its own flags; a number that claims to be an object is a pointer.
    """

    def __init__(self, kind: str, align: bool = False, copy: bool = False):
        if not re.fullmatch(r'[biufcSU]\d+', kind):
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype({kind!r})')
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray`` until the file is read."""

    array = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, data = state
        order = 'F' if is_fortran else 'C'
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order=order).copy(order)


def _empty_array(kind: type, shape: tuple, code: bytes) -> _Array:
    """Stands in for NumPy's ``_reconstruct``: an array that is about to get its state."""
    return _Array()


def _no_bytes() -> bytes:
    """Stands in for ``bytes``, which is how an array without elements is pickled."""
    return b''


def _scalar(kind: _DType, data: bytes) -> np.generic:
    """Stands in for NumPy's ``scalar``."""
    return np.frombuffer(data, kind.dtype, count=1)[0]


def _with_arrays(value: Any) -> Any:
    """Puts arrays where their stand-ins are."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, _DType):
        return value.dtype
    if isinstance(value, dict):
        for key, part in value.items():
            value[key] = _with_arrays(part)
    elif isinstance(value, list):
        value[:] = map(_with_arrays, value)
    elif type(value) is tuple:
        return tuple(map(_with_arrays, value))
    elif type(value) in (_allowed()[f'{_HISTORY}.HistoryBuffer'], argparse.Namespace):
        _with_arrays(vars(value))
    return value


class _Unpickler(pickle.Unpickler):
    """Finds what is allowed and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        path = f'{module.replace("__builtin__", "builtins")}.{name}'
        allowed = {
            **torch._weights_only_unpickler._get_allowed_globals(),
            '_codecs.encode': codecs.encode,  # bytes of old protocols
            'builtins.set': set,
            **_allowed(),
        }
        if path not in allowed:
            raise pickle.UnpicklingError(f'GLOBAL {path}')
        return allowed[path]

    @classmethod
    def load_file(cls, file: Any, **kwargs) -> Any:
        return cls(file, **kwargs).load()


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    if os.path.isfile(path) and (kind := foreign_kind(path)):
        return f'{path} is not a checkpoint that torch can read: {kind}'
    if asked := re.search(r'GLOBAL (\S+)', str(error)):
        return (
            f'{path}: holds more than tensors and plain values, it asks for {asked[1]}, which may '
            f'run code. If you trust the file, set {TRUST}=1, or save its weights alone: '
            "torch.save(torch.load(IN, weights_only=False)['state_dict'], OUT), or ['model']"
        )
    # torch puts three lines of advice before what is wrong.
    lines = str(error).partition('WeightsUnpickler error: ')[2] or str(error)
    line = (lines.strip().splitlines() or [type(error).__name__])[0]
    return f'{path} is not a checkpoint that torch can read: {line}'


def foreign_kind(path: Path) -> str | None:
    """What a file is that is no checkpoint, by its first bytes; None if it may be one."""
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head:
        return 'it is empty'
    if head.startswith(b'version https://git-lfs'):
        return 'it is the pointer of Git LFS, run `git lfs pull`'
    if head.lstrip().startswith(b'<'):
        return 'it is the page of a download, fetch the file itself'
    if head[8:9] == b'{' and path.suffix.lower() != '.safetensors':
        return 'it is a safetensors file, let its name end in .safetensors'
    if head.startswith((b'PK', b'\x80')) and path.suffix.lower() == '.safetensors':
        return 'it is a file of torch.save, let its name end in .pth'
    return None
