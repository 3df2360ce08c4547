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

Networks that mcf_mm made slim convert too, with the sizes of their FFNs and attention and the
buffers ``inputs`` and ``sizes``. Hugging Face's own classes cannot load these; see
:mod:`mcf_mm.weights.timm` for timm's. Pruned attention has no names there at all.

mmpretrain's own old files of Swin (``norm`` for ``norm3``, stored masks) get its names of today.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcf_mm.weights.check import check_finite
from mcf_mm.weights.files import read_header, read_weights, save_pth, save_state_dict
from mcf_mm.weights.names import LIBRARIES, Names, Part, first_few, libraries, recognise
from mcf_mm.weights.resize import note_grid, noted_grid
from mcf_mm.weights.swin import modern_swin_names, relative_position_index


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
            key has no counterpart in ``to``, the layers of an FFN do not go together, attention is
            pruned and ``to`` is Hugging Face, a YOLOS is not whole, or the names are those of
            ``to`` already.
    """
    return _convert(state_dict, to)[0]


def _convert(state_dict: Mapping[str, Tensor], to: str) -> tuple[dict[str, Tensor], Names, Names]:
    """The same with the names that were read and written."""
    if to not in LIBRARIES:
        raise ValueError(f'to must be one of {list(LIBRARIES)}, got {to!r}')
    noted, state_dict = state_dict, dict(state_dict)
    is_old = bool(modern_swin_names(state_dict, 'backbone.'))
    family, source = recognise(state_dict)
    if to not in libraries(family):
        raise ValueError(
            f'the weights are of a {family}: to must be one of {list(libraries(family))}, '
            f'got {to!r}'
        )
    target = Names(family, to, state_dict)
    if source.templates == target.templates and not is_old:
        raise ValueError(f'these are the names of {to} already, nothing is to be converted')
    parts = _gather(state_dict, source)
    if family == 'YOLOS' and (missing := source.missing({part.name for part, _ in parts})):
        raise ValueError(
            f'{len(missing)} weights of a YOLOS in the names of {source.library} are missing: '
            f'{first_few(missing)}'
        )
    _check_ffns(parts, source)
    if target.query_key_value:
        _check_attention(parts, source, to)
    converted = OrderedDict()
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
            converted[index] = relative_position_index(name, tensor)
        if part.name.endswith('pos_embed'):
            grid = noted_grid(noted, source.write(part).rpartition('.')[0])
            if grid:
                note_grid(converted, grid, name.rpartition('.')[0])
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


def _check_ffns(parts: list[tuple[Part, Tensor]], source: Names) -> None:
    """Refuses FFNs whose two layers do not go together: nobody could load them."""
    tensors = {part.name: (part, tensor) for part, tensor in parts}
    for part, weight in parts:
        if not part.name.endswith('ffn.layers.0.0.weight'):
            continue
        ffn = part.name.removesuffix('layers.0.0.weight')
        _, second = tensors.get(f'{ffn}layers.1.weight', (None, None))
        if second is None:
            raise ValueError(f'{source.write(part)!r} is there without the second layer of its FFN')
        _, index = tensors.get(f'{ffn}layers.0.0.inputs', (None, second[:, 0]))
        if tuple(weight.shape) != (second.shape[1], index.shape[-1]):
            raise ValueError(
                f'{source.write(part)!r} is {tuple(weight.shape)} and should be '
                f'{(second.shape[1], index.shape[-1])}, as wide as the second layer of its FFN '
                f'{tuple(second.shape)} and what is kept of its inputs say: the file is damaged'
            )
        if not weight.is_floating_point():
            raise ValueError(f'{source.write(part)!r} is {weight.dtype}, no floating point')


def _check_attention(parts: list[tuple[Part, Tensor]], source: Names, to: str) -> None:
    """Refuses pruned attention where query, key and value are three layers of one width."""
    for part, sizes in parts:
        if part.name.endswith('.sizes'):
            heads, queries, values = sizes.tolist()
            layer = source.write(part).removesuffix('.sizes')
            raise ValueError(
                f'{layer!r} is pruned attention, {heads} heads with {queries} query and key and '
                f'{values} value channels each: {to} cannot express it. Convert to OpenMMLab, '
                'timm or original, or prune FFNs alone'
            )


def _reorder_merging(tensor: Tensor, source: str, to: str) -> Tensor:
    """Orders the inputs of a patch merging, ``(4 C)`` or ``(2 C, 4 C)``, as ``to`` has them.

    mmpretrain has the four pixels of one channel together, row by row; the others have the
    channels of one pixel together, and the pixels column by column.
    """
    if (source == 'mmpretrain') == (to == 'mmpretrain'):
        return tensor
    if source == 'mmpretrain':
        pixels = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)
        return pixels[..., [0, 2, 1, 3], :].flatten(-2)
    pixels = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2)


def convert_checkpoint(source: str | Path, target: str | Path, to: str) -> dict[str, Tensor]:
    """Converts a checkpoint file; nothing in it is executed.

    Args:
        source: As for :func:`mcf_mm.weights.files.read_weights`.
        target: ``.safetensors``, whose header names the source, or ``.pth`` with the weights
            under ``state_dict``. Appears whole or not at all.
        to: As for :func:`convert_state_dict`.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: There is no ``source``.
        ValueError: A file has another ending, ``source`` cannot be read without running code from
            it, or its weights cannot be converted or are NaN or infinite.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'the output must end in .safetensors or .pth, got {target}')
    weights = read_weights(source)
    check_finite(weights, str(source))
    try:
        state_dict, names, new_names = _convert(weights, to)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    header = {'origin': source.name}
    if source.suffix.lower() == '.safetensors':
        header |= read_header(source)
        # Over the names of the buffers too, so it is taken anew.
        header.pop('indices_sha256', None)
        header.pop('grids', None)
    # Sizes and whatever else is told by layer.
    header = {
        key: _rename(value, names, new_names) if isinstance(value, dict) else value
        for key, value in header.items()
    }
    if target.suffix == '.safetensors':
        save_state_dict(target, state_dict, header)
    else:
        save_pth(target, {'state_dict': state_dict, 'meta': header})
    return state_dict


def _rename(facts: dict, names: Names, new_names: Names) -> dict:
    """What a header tells by layer, in other names."""
    renamed = {}
    for name, fact in facts.items():
        part = names.read(name)
        renamed[new_names.write(part) or name if part else name] = fact
    return renamed
