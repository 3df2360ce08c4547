"""Weights in files, with torch and safetensors alone: no code runs, nothing is half-written.

A slim network is a safetensors file with a JSON header that says how it was made.
:mod:`mcf_mm.weights.checkpoint` lets MMEngine read such files too.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import mcf_mm
from mcf_mm.files import whole_file
from mcf_mm.weights.check import check_slim_buffers
from mcf_mm.weights.pickles import foreign_kind, load_pickle
from mcf_mm.weights.resize import note_grid
from mcf_mm.weights.unwrap import unwrap

HEADER = 'mcf_mm'
#: Endings of files that :func:`read_weights` reads.
ENDINGS = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt')


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Reads a checkpoint with all that is in it; no code from it runs.

    Args:
        path: ``.safetensors`` (in any case), or else a file of ``torch.save``; see
            :func:`mcf_mm.weights.pickles.load_pickle` for what it may hold.
        map_location: As for :func:`torch.load`; a device for safetensors. Defaults to ``'cpu'``.

    Returns:
        What the file holds. Of safetensors the tensors are ``state_dict``, the header ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is no checkpoint, asks for functions that may run code, or
            has indices of pruned layers that make no sense.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    if path.suffix.lower() == '.safetensors':
        device = map_location if isinstance(map_location, str | torch.device) else 'cpu'
        state_dict, header = read_safetensors(path, str(device))
        return {'state_dict': state_dict, 'meta': header}
    checkpoint = load_pickle(path, map_location)
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path}: no weights in it, but one {type(checkpoint).__name__}')
    return checkpoint


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """Reads the weights of a checkpoint; no code from it runs.

    Args:
        path: File with one of :data:`ENDINGS`, as for :func:`read_checkpoint`; weights at the top
            level or under ``model``, ``state_dict`` and the like, see
            :func:`mcf_mm.weights.unwrap.unwrap`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another ending or no weights, or as for :func:`read_checkpoint`.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f'{path}: a checkpoint must end in {", ".join(ENDINGS[:-1])} or {ENDINGS[-1]}'
        )
    checkpoint = read_checkpoint(path)
    try:
        return unwrap(checkpoint)[0]
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def read_safetensors(path: str | Path, device: str = 'cpu') -> tuple[dict[str, Tensor], dict]:
    """Reads the tensors and the header of a safetensors file.

    Returns:
        The tensors by key, with the grids of position embeddings that the header notes (see
        :mod:`mcf_mm.weights.resize`), and what :func:`save_state_dict` wrote about them (empty for
        files of others).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or not in this format, its indices make no sense or are not
            those that the header speaks of.
    """
    path = Path(path).expanduser()
    header = read_header(path)
    with _named(path), safe_open(path, framework='pt', device=device) as file:
        state_dict = OrderedDict((key, file.get_tensor(key)) for key in file.keys())
    check_slim_buffers(state_dict, str(path))
    told = str(header.get('indices_sha256', ''))
    if told and told != indices_sha256(state_dict):
        raise ValueError(
            f'{path}: the kept inputs differ from those its header speaks of '
            f'(indices_sha256 {told[:12]}...); it was changed after pruning'
        )
    if isinstance(grids := header.get('grids'), dict):
        for module, grid in grids.items():
            note_grid(state_dict, grid, module)
    return state_dict, header


def read_header(path: str | Path) -> dict:
    """What :func:`save_state_dict` wrote about the network; empty for other files.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or not in this format, or its header is not a JSON object.
    """
    path = Path(path).expanduser()
    with _named(path), safe_open(path, framework='pt') as file:
        text = (file.metadata() or {}).get(HEADER, '{}')
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}: its header {HEADER!r} is damaged: {error}') from error
    if not isinstance(header, dict):
        raise ValueError(f'{path}: its header {HEADER!r} is a {type(header).__name__}, no object')
    return header


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file that safetensors cannot read."""
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        yield
    except SafetensorError as error:
        reason = foreign_kind(path) or error
        raise ValueError(f'{path} is not a whole safetensors file: {reason}') from error


def save_state_dict(path: str | Path, state_dict: Mapping[str, Tensor], header: dict) -> None:
    """Writes tensors and a header; the file appears whole or not at all.

    Tied weights are written under each of their names. The file is then whole for whoever reads it
    without mcf_mm, at the price of some bytes: what is tied in detectors are heads.

    Args:
        path: File to write, ending in ``.safetensors``.
        state_dict: Weights and buffers of pruned layers. The grids of position embeddings that it
            notes go to the header.
        header: JSON-serialisable facts about them; the version of mcf_mm and the hash of the
            buffers of pruned layers are added.
    """
    header = {
        'version': mcf_mm.__version__,
        'indices_sha256': indices_sha256(state_dict),
        **header,
    }
    versions = getattr(state_dict, '_metadata', {})
    if grids := {name: part['grid'] for name, part in versions.items() if 'grid' in part}:
        header['grids'] = grids
    tensors, written = {}, set()
    for key, value in state_dict.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        tensors[key] = tensor.clone() if memory in written else tensor
        written.add(memory)
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={'format': 'pt', HEADER: json.dumps(header)})
        _order_metadata(partial)


def _order_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, so that the same content is the same bytes.

    safetensors writes it in a random order.
    """
    with open(path, 'r+b') as file:
        size = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(size))
        ordered = {'__metadata__': dict(sorted(header.pop('__metadata__').items())), **header}
        text = json.dumps(ordered, separators=(',', ':'), ensure_ascii=False).encode()
        if len(text) <= size:  # the same characters in another order, and spaces up to the data
            file.seek(8)
            file.write(text.ljust(size))


def save_pth(path: str | Path, checkpoint: dict) -> None:
    """Writes what ``torch.save`` can; the file appears whole or not at all."""
    with whole_file(path) as partial:
        torch.save(checkpoint, partial)


def indices_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Hash of what pruned layers keep, to tell networks of equal sizes apart.

    That is which inputs each layer reads, and the sizes of attention. Files without pruned
    attention have the same hash as before there was any.
    """
    indices = {
        key: state_dict[key].tolist()
        for key in sorted(state_dict)
        if key.endswith(('.inputs', '.sizes'))
    }
    return hashlib.sha256(json.dumps(indices).encode()).hexdigest()
