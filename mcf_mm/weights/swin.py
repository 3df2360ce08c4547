"""What is particular to a Swin Transformer: names of mmpretrain's old files, indices of biases."""

import re
from collections.abc import MutableMapping
from math import isqrt

import torch
from torch import Tensor


def modern_swin_names(
    state_dict: MutableMapping[str, Tensor], prefix: str = '', num_layers: int | None = None
) -> list[str]:
    """Renames in place what mmpretrain's first files call otherwise.

    The norm after the last stage was ``norm`` before it was ``norm3``, and the masks of shifted
    windows were stored. mmpretrain's class does the same in its ``_load_from_state_dict``, but
    not for classes derived from it, and after a checker had its look.

    Args:
        state_dict: Weights of a Swin Transformer of mmpretrain; other weights stay as they are.
        prefix: What stands before the names of the backbone, such as ``'backbone.'``. Defaults to
            nothing.
        num_layers: Number of stages. Defaults to those that the weights have.

    Returns:
        The old names, renamed or dropped; none if there was nothing to do.
    """
    stages = {
        int(match[1])
        for key in state_dict
        if (match := re.match(rf'{re.escape(prefix)}stages\.(\d+)\.blocks\.\d+\.attn\.', key))
    }
    if not stages:
        return []
    number = num_layers or max(stages) + 1
    old = []
    # A list, in the old order: a dict that grows cannot be looped over.
    for key, value in list(state_dict.items()):
        del state_dict[key]
        name = key.removeprefix(prefix) if key.startswith(prefix) else ''
        if name.endswith('.attn.attn_mask'):
            old.append(key)
            continue
        if name in ('norm.weight', 'norm.bias'):
            old.append(key)
            key = f'{prefix}norm{number - 1}.{name.removeprefix("norm.")}'
        state_dict[key] = value
    return old


def relative_position_index(name: str, table: Tensor) -> Tensor:
    """Which row of the bias table, ``((2 w - 1)**2, heads)``, each pair of pixels reads.

    Args:
        name: What to call the table in an error.
        table: Biases, ``((2 w - 1)**2, heads)``.

    Returns:
        ``(w * w, w * w)``, int64, for square windows of w x w pixels.

    Raises:
        ValueError: The window is no square.
    """
    window = (isqrt(len(table)) + 1) // 2
    if (2 * window - 1) ** 2 != len(table):
        raise ValueError(f"{name!r} has {len(table)} rows, which is no square window's (2w - 1)^2")
    pixels = torch.arange(window * window, device=table.device)
    row, column = pixels // window, pixels % window
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    return rows * (2 * window - 1) + columns
