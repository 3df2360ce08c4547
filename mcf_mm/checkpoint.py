"""Slim checkpoints: safetensors with a JSON header that says how the network was made.

Loading one never unpickles. Importing this module lets MMEngine read ``.safetensors`` files
wherever it reads a checkpoint (``load_from``, ``init_cfg``).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import mcf_mm

HEADER = 'mcf_mm'


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = 'cpu') -> dict[str, dict]:
    """Reads a safetensors file; MMEngine calls it for such files.

    Returns:
        A checkpoint as MMEngine expects it: the tensors as ``state_dict``, the header as
        ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not in this format, or its indices are not those that
            the header speaks of.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {filename}')
    device = map_location if isinstance(map_location, str) else 'cpu'
    try:
        with safe_open(path, framework='pt', device=device) as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f'{filename} is not a whole safetensors file: {error}') from error
    header = read_header(path)
    if header.get('indices_sha256', _indices_sha256(state_dict)) != _indices_sha256(state_dict):
        raise ValueError(
            f'{filename}: the kept inputs differ from those its header speaks of '
            f'(indices_sha256 {header["indices_sha256"][:12]}...); it was changed after pruning'
        )
    return {'state_dict': state_dict, 'meta': header}


def read_state_dict(filename: str) -> dict[str, Tensor]:
    """The weights of any checkpoint that MMEngine can read, without training state."""
    checkpoint = _load_checkpoint(filename, map_location='cpu', logger='silent')
    return checkpoint.get('state_dict', checkpoint.get('model', checkpoint))


def save_state_dict(path: str | Path, state_dict: dict[str, Tensor], header: dict) -> None:
    """Writes tensors and a header; the file appears whole or not at all.

    Args:
        path: File to write, ending in ``.safetensors``.
        state_dict: Weights and index buffers.
        header: JSON-serialisable facts about them; the version of mcf_mm and the hash of the
            index buffers are added.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        'version': mcf_mm.__version__,
        'indices_sha256': _indices_sha256(state_dict),
        **header,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    partial = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        save_file(tensors, partial, metadata={'format': 'pt', HEADER: json.dumps(header)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
