"""DeiT checkpoints between the names of timm and those of mmpretrain's ImageClassifier.

timm keeps the names of the original DeiT release, so these count as timm's. Tensors are only
renamed: there and back gives the same bits. Networks that mcf_mm made slim convert too, with the
sizes of their FFNs and the index buffers ``inputs``.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcf_mm.checkpoint import read_header, read_state_dict, save_state_dict

#: timm's name and mmpretrain's name of each part of the network.
PARTS = {
    'cls_token': 'backbone.cls_token',
    'dist_token': 'backbone.dist_token',
    'pos_embed': 'backbone.pos_embed',
    'patch_embed.proj': 'backbone.patch_embed.projection',
    'norm': 'backbone.ln1',
    'head': 'head.layers.head',
    'head_dist': 'head.layers.head_dist',
}
#: The same for the parts of each layer, below ``blocks.N`` and ``backbone.layers.N``.
LAYER_PARTS = {
    'norm1': 'ln1',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'norm2': 'ln2',
    'mlp': 'ffn',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}
LAYERS = {'timm': 'blocks', 'mmpretrain': 'backbone.layers'}


def convert_state_dict(state_dict: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Renames the weights of a DeiT.

    Args:
        state_dict: Weights under the names of the other library.
        to: ``'mmpretrain'`` or ``'timm'``.

    Returns:
        The same tensors in the same order under the names of ``to``.

    Raises:
        ValueError: ``to`` is unknown, or a key is not one of a DeiT of the other library.
    """
    unknown = [key for key in state_dict if _rename_key(key, to) is None]
    if unknown:
        source = next(library for library in LAYERS if library != to)
        message = f'{len(unknown)} of {len(state_dict)} keys are not of a {source} DeiT: '
        message += ', '.join(map(repr, unknown[:5])) + (', ...' if len(unknown) > 5 else '')
        if all(_rename_key(key, source) for key in state_dict):
            message += f'. These are the names of {to} already, nothing is to be converted'
        raise ValueError(message)
    return {_rename_key(key, to): value for key, value in state_dict.items()}


def _rename_key(key: str, to: str) -> str | None:
    """The name of one tensor in the library ``to``, None for an unknown key."""
    part, _, leaf = key.rpartition('.')
    if leaf in ('weight', 'bias') or (
        leaf == 'inputs' and part.endswith(('mlp.fc1', '.layers.0.0'))
    ):
        renamed = _rename_part(part, to)
        return renamed and f'{renamed}.{leaf}'
    return _rename_part(key, to) if key.endswith(('_token', 'pos_embed')) else None


def _rename_part(part: str, to: str) -> str | None:
    """The same for a module or a parameter without module."""
    if to not in LAYERS:
        raise ValueError(f'to must be one of {sorted(LAYERS)}, got {to!r}')
    source = next(library for library in LAYERS if library != to)
    layer = re.fullmatch(rf'{re.escape(LAYERS[source])}\.(\d+)\.(.+)', part)
    table = LAYER_PARTS if layer else PARTS
    if to == 'timm':
        table = {mmpretrain: timm for timm, mmpretrain in table.items()}
    renamed = table.get(layer[2] if layer else part)
    return f'{LAYERS[to]}.{layer[1]}.{renamed}' if layer and renamed else renamed


def convert_checkpoint(source: str | Path, target: str | Path, to: str) -> dict[str, Tensor]:
    """Converts a checkpoint file; nothing in it is executed.

    Args:
        source: ``.safetensors``, or ``.pth``, ``.pt`` or ``.bin`` with nothing but tensors and
            plain values (weights at the top level or under ``model`` or ``state_dict``).
        target: ``.safetensors``, whose header names the source, or ``.pth`` with the weights
            under ``state_dict``. Appears whole or not at all.
        to: ``'mmpretrain'`` or ``'timm'``.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: There is no ``source``.
        ValueError: A file has another ending, ``source`` is damaged or holds objects that only
            unpickling could read, or its keys are not those of a DeiT.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'the output must end in .safetensors or .pth, got {target}')
    try:
        state_dict = convert_state_dict(_read(source), to)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    header = {'origin': source.name}
    if source.suffix == '.safetensors':
        header |= read_header(source)
        # Over the names of the buffers too, so it is taken anew.
        header.pop('indices_sha256', None)
    if isinstance(header.get('sizes'), dict):
        header['sizes'] = {
            _rename_part(name, to) or name: sizes for name, sizes in header['sizes'].items()
        }
    if target.suffix == '.safetensors':
        save_state_dict(target, state_dict, header)
    else:
        _save_pth(target, {'state_dict': state_dict, 'meta': header})
    return state_dict


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == '.safetensors':
        return read_state_dict(str(path))
    if path.suffix not in ('.pth', '.pt', '.bin'):
        raise ValueError('a checkpoint must end in .safetensors, .pth, .pt or .bin')
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            'holds more than tensors (a training checkpoint does) or is damaged. If you trust it, '
            'save the weights alone: '
            "torch.save(torch.load(IN, weights_only=False)['state_dict'], OUT)"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'not a whole PyTorch checkpoint: {error}') from error
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not all(
        isinstance(value, Tensor) for value in checkpoint.values()
    ):
        raise ValueError("no weights at the top level, under 'model' or under 'state_dict'")
    return checkpoint


def _save_pth(path: Path, checkpoint: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        torch.save(checkpoint, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
