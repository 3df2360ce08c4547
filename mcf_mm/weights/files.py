"""Weights in files, with torch and safetensors alone: nothing is unpickled, nothing half-written.

A slim network is a safetensors file with a JSON header that says how it was made.
:mod:`mcf_mm.weights.checkpoint` lets MMEngine read such files too.
"""

import argparse
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import mcf_mm

HEADER = 'mcf_mm'


def read_safetensors(path: str | Path, device: str = 'cpu') -> tuple[dict[str, Tensor], dict]:
    """Reads the tensors and the header of a safetensors file.

    Returns:
        The tensors by key, and what :func:`save_state_dict` wrote about them (empty for files of
        others).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not in this format, or its indices are not those that
            the header speaks of.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        with safe_open(path, framework='pt', device=device) as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f'{path} is not a whole safetensors file: {error}') from error
    header = read_header(path)
    if header.get('indices_sha256', _indices_sha256(state_dict)) != _indices_sha256(state_dict):
        raise ValueError(
            f'{path}: the kept inputs differ from those its header speaks of '
            f'(indices_sha256 {header["indices_sha256"][:12]}...); it was changed after pruning'
        )
    return state_dict, header


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint; nothing in it is executed.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt`` or ``.bin`` with nothing but tensors and
            plain values (weights at the top level or under ``model`` or ``state_dict``). The
            options that the training scripts of DeiT and YOLOS save beside them are plain values
            too, with torch 2.5 or newer.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another ending, is damaged, or holds objects that only
            unpickling could read.
    """
    path = Path(path).expanduser()
    if path.suffix == '.safetensors':
        return read_safetensors(path)[0]
    if path.suffix not in ('.pth', '.pt', '.bin'):
        raise ValueError(f'{path}: a checkpoint must end in .safetensors, .pth, .pt or .bin')
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        with _options_allowed():
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path}: holds more than tensors (a training checkpoint does) or is damaged. If you '
            'trust it, save the weights alone: '
            "torch.save(torch.load(IN, weights_only=False)['state_dict'], OUT), or ['model']"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{path}: not a whole PyTorch checkpoint: {error}') from error
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not all(
        isinstance(value, Tensor) for value in checkpoint.values()
    ):
        raise ValueError(f"{path}: no weights at the top level, under 'model' or 'state_dict'")
    return checkpoint


def _options_allowed() -> AbstractContextManager:
    """Lets ``weights_only`` read an argparse.Namespace, of which unpickling sets attributes only.

    Older torch has no such list; there, these files are refused as all others that hold objects.
    """
    if hasattr(torch.serialization, 'safe_globals'):
        return torch.serialization.safe_globals([argparse.Namespace])
    return nullcontext()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name to write to; the file gets its own when the context ends well.

    So it appears whole or not at all. The folder is made if need be; the temporary name has the
    same ending, by which some writers choose the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_state_dict(path: str | Path, state_dict: dict[str, Tensor], header: dict) -> None:
    """Writes tensors and a header; the file appears whole or not at all.

    Args:
        path: File to write, ending in ``.safetensors``.
        state_dict: Weights and index buffers.
        header: JSON-serialisable facts about them; the version of mcf_mm and the hash of the
            index buffers are added.
    """
    header = {
        'version': mcf_mm.__version__,
        'indices_sha256': _indices_sha256(state_dict),
        **header,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={'format': 'pt', HEADER: json.dumps(header)})


def save_pth(path: str | Path, checkpoint: dict) -> None:
    """Writes what ``torch.save`` can; the file appears whole or not at all."""
    with whole_file(path) as partial:
        torch.save(checkpoint, partial)


def read_header(path: str | Path) -> dict:
    """What :func:`save_state_dict` wrote about the network; empty for other files."""
    with safe_open(path, framework='pt') as file:
        return json.loads((file.metadata() or {}).get(HEADER, '{}'))


def _indices_sha256(state_dict: dict[str, Tensor]) -> str:
    """Hash of which inputs each layer keeps, to tell networks of equal sizes apart."""
    indices = {
        key: state_dict[key].tolist() for key in sorted(state_dict) if key.endswith('.inputs')
    }
    return hashlib.sha256(json.dumps(indices).encode()).hexdigest()
