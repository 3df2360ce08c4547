"""Weights between OpenMMLab, timm, the original releases and Hugging Face.

ViT, DeiT and Swin classifiers go between mmpretrain and the others, YOLOS between mcf_mm's detector
in mmdet, its release and Hugging Face.

There and back gives the same bits: tensors are renamed, and apart from that the libraries differ
in three things, all exact.

- Hugging Face has query, key and value in three layers, the others have them in one.
- mmpretrain merges the patches of a Swin with ``nn.Unfold``, which orders the inputs of a patch
  merging channel by channel; the others go pixel by pixel.
- ``relative_position_index`` and ``attn_mask`` follow from the sizes of a Swin. They are left
  out; the index is made anew for all but timm, which has none (transformers 5 passes over it).

Networks that mcf_mm made slim convert too, with the sizes of their FFNs and the index buffers
``inputs``. Hugging Face's own classes cannot load these; see :mod:`mcf_mm.weights.timm` for timm's.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcf_mm.weights.files import read_header, read_weights, save_pth, save_state_dict
from mcf_mm.weights.names import LIBRARIES, Names, Part, first_few, libraries, recognise


def convert_state_dict(state_dict: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Converts the weights of a network; the names they have tell where they come from.

    Args:
        state_dict: Weights of mmpretrain's ImageClassifier with a VisionTransformer,
            DistilledVisionTransformer or SwinTransformer, or of the same network in timm, the
            original releases of DeiT and Swin, or Hugging Face (ViT-, DeiT- or
            SwinForImageClassification, DeiT also WithTeacher). The classifier may be missing.
            Or of a whole YOLOS: :class:`mcf_mm.models.YOLOS`, its release, or Hugging Face's
            YolosForObjectDetection.
        to: Whose names to give, one of :data:`mcf_mm.weights.names.LIBRARIES`: of a classifier all
            but ``'mmdet'``, of a YOLOS ``'mmdet'``, ``'original'`` or ``'huggingface'``.

    Returns:
        The weights in the same order; those that are only renamed are the same tensors.

    Raises:
        ValueError: ``to`` is unknown or lacks this network, a key is not one of these networks, a
            key has no counterpart in ``to``, a YOLOS is not whole, or the names are those of
            ``to`` already.
    """
    return _convert(state_dict, to)[0]


def _convert(state_dict: Mapping[str, Tensor], to: str) -> tuple[dict[str, Tensor], Names, Names]:
    """The same with the names that were read and written."""
    if to not in LIBRARIES:
        raise ValueError(f'to must be one of {list(LIBRARIES)}, got {to!r}')
    family, source = recognise(state_dict)
    if to not in libraries(family):
        raise ValueError(
            f'the weights are of a {family}: to must be one of {list(libraries(family))}, '
            f'got {to!r}'
        )
    target = Names(family, to, state_dict)
    if source.templates == target.templates:
        raise ValueError(f'these are the names of {to} already, nothing is to be converted')
    parts = _gather(state_dict, source)
    if family == 'YOLOS' and (missing := source.missing({part.name for part, _ in parts})):
        raise ValueError(
            f'{len(missing)} weights of a YOLOS in the names of {source.library} are missing: '
            f'{first_few(missing)}'
        )
    converted = {}
    for part, tensor in parts:
        split = target.query_key_value if '.qkv.' in part.name else ()
        name = target.write(part, 0 if split else None)
        if name is None:
            raise ValueError(f'{to} has no counterpart of {source.write(part)!r}')
        if '.downsample.' in part.name:
            tensor = _reorder_merging(tensor, source.library, to)
        if split:
            # Copies, so that no file gets the storage of all three with each.
            for third, rows in enumerate(tensor.chunk(3)):
                converted[target.write(part, third)] = rows.clone()
        else:
            converted[name] = tensor
        if name.endswith('bias_table') and to != 'timm':
            index = name.replace('bias_table', 'index')
            converted[index] = _relative_position_index(name, tensor)
    return converted, source, target


def _gather(state_dict: Mapping[str, Tensor], source: Names) -> list[tuple[Part, Tensor]]:
    """Reads the keys, leaves derived buffers out, and puts query, key and value together."""
    parts: dict[str, Part] = {}
    tensors: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state_dict.items():
        part = source.read_key(key)
        if part.name.endswith(('relative_position_index', 'attn_mask')):
            continue
        thirds = tensors.setdefault(part.name, {})
        if (part.third or 0) in thirds:
            raise ValueError(f'{key!r} and a key before it name the same weight, {part.name!r}')
        thirds[part.third or 0] = tensor
        parts[part.name] = part
    gathered = []
    for name, part in parts.items():
        thirds = tensors[name]
        if part.third is None:
            gathered.append((part, thirds[0]))
            continue
        if missing := [source.write(part, third) for third in range(3) if third not in thirds]:
            raise ValueError(f'{missing} are missing beside {source.write(part, part.third)!r}')
        gathered.append((part, torch.cat([thirds[third] for third in range(3)])))
    return gathered


def _reorder_merging(tensor: Tensor, source: str, to: str) -> Tensor:
    """Orders the inputs of a patch merging, ``(4 C)`` or ``(2 C, 4 C)``, as ``to`` has them.

    mmpretrain has the four pixels of one channel together, row by row; the others have the
    channels of one pixel together, and the pixels column by column.
    """
    if source == 'mmpretrain':
        pixels = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)
        return pixels[..., [0, 2, 1, 3], :].flatten(-2)
    if to == 'mmpretrain':
        pixels = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
        return pixels.transpose(-1, -2).flatten(-2)
    return tensor


def _relative_position_index(name: str, table: Tensor) -> Tensor:
    """Which row of the bias table, ``((2 w - 1)**2, heads)``, each pair of pixels reads.

    Returns:
        ``(w * w, w * w)``, int64, for square windows of w x w pixels.
    """
    window = (math.isqrt(len(table)) + 1) // 2
    if (2 * window - 1) ** 2 != len(table):
        raise ValueError(f"{name!r} has {len(table)} rows, which is no square window's (2w - 1)^2")
    pixels = torch.arange(window * window, device=table.device)
    row, column = pixels // window, pixels % window
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    return rows * (2 * window - 1) + columns


def convert_checkpoint(source: str | Path, target: str | Path, to: str) -> dict[str, Tensor]:
    """Converts a checkpoint file; nothing in it is executed.

    Args:
        source: ``.safetensors``, or ``.pth``, ``.pt`` or ``.bin`` with nothing but tensors and
            plain values (weights at the top level or under ``model`` or ``state_dict``).
        target: ``.safetensors``, whose header names the source, or ``.pth`` with the weights
            under ``state_dict``. Appears whole or not at all.
        to: As for :func:`convert_state_dict`.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: There is no ``source``.
        ValueError: A file has another ending, ``source`` is damaged or holds objects that only
            unpickling could read, or its weights cannot be converted.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'the output must end in .safetensors or .pth, got {target}')
    weights = read_weights(source)
    try:
        state_dict, names, new_names = _convert(weights, to)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    header = {'origin': source.name}
    if source.suffix == '.safetensors':
        header |= read_header(source)
        # Over the names of the buffers too, so it is taken anew.
        header.pop('indices_sha256', None)
    if isinstance(header.get('sizes'), dict):
        header['sizes'] = {
            new_names.write(part) if (part := names.read(name)) else name: sizes
            for name, sizes in header['sizes'].items()
        }
    if target.suffix == '.safetensors':
        save_state_dict(target, state_dict, header)
    else:
        save_pth(target, {'state_dict': state_dict, 'meta': header})
    return state_dict
