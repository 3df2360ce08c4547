"""Position embeddings and bias tables of another image or window size, resized with torch.

Functions on tensors, for the classes that load them. Grids are compared, not counts: 4 x 8 patches
are not 8 x 4. A state dict notes its grids beside the versions of its modules, in ``_metadata``,
where torch and MMEngine carry them along; :mod:`mcf_mm.weights.files` has them in its header.
"""

from collections.abc import Mapping, MutableMapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def resize_positions(
    embed: Tensor, grid: Grid, new_grid: Grid, extra: int = 1, trailing: int = 0
) -> Tensor:
    """Resizes learnt position embeddings bicubically, as mmpretrain and timm do.

    Args:
        embed: Embeddings, ``(L, extra + rows * columns + trailing, C)``.
        grid: Rows and columns of patches that they were learnt for.
        new_grid: Rows and columns that are wanted.
        extra: Number of tokens before the patches (class, distillation). Defaults to 1.
        trailing: Number of tokens behind them (YOLOS). Defaults to 0.

    Returns:
        ``(L, extra + new_rows * new_columns + trailing, C)``; ``embed`` itself for equal grids.

    Raises:
        ValueError: ``embed`` is not of ``grid``.
    """
    rows, columns = grid
    number = extra + rows * columns + trailing
    if embed.dim() != 3 or embed.shape[1] != number:
        raise ValueError(
            f'position embeddings have shape {tuple(embed.shape)}; {rows} x {columns} patches and '
            f'{extra + trailing} other tokens need (L, {number}, C)'
        )
    if tuple(grid) == tuple(new_grid):
        return embed
    before, patches, behind = embed.split((extra, rows * columns, trailing), dim=1)
    return torch.cat((before, _resize(patches, grid, new_grid), behind), dim=1)


def fit_positions(
    embed: Tensor,
    own_grid: Grid,
    *,
    extra: int = 1,
    trailing: int = 0,
    noted: Grid | None = None,
    trusted: bool = False,
    name: str = 'pos_embed',
) -> Tensor:
    """The position embeddings of a checkpoint for the grid of a network.

    Args:
        embed: Of the checkpoint, ``(1, extra + patches + trailing, C)``. One more token is taken
            for a class token and left out where ``extra`` is 0.
        own_grid: Rows and columns of the network.
        extra: Number of tokens before the patches. Defaults to 1.
        trailing: Number of tokens behind them. Defaults to 0.
        noted: Grid that the checkpoint notes, see :func:`noted_grid`. Defaults to None.
        trusted: See :func:`find_grid`. Defaults to False.
        name: What to call the embeddings in an error. Defaults to ``'pos_embed'``.

    Returns:
        ``(1, extra + rows * columns + trailing, C)``; ``embed`` itself for equal grids.

    Raises:
        ValueError: The grid of the checkpoint cannot be known.
    """
    patches = embed.shape[1] - extra - trailing
    if extra == 0 and (noted or own_grid)[0] * (noted or own_grid)[1] == patches - 1:
        embed, patches = embed[:, 1:], patches - 1
    grid = find_grid(patches, own_grid, noted=noted, trusted=trusted, name=name)
    return resize_positions(embed, grid, own_grid, extra, trailing)


def find_grid(
    patches: int,
    own_grid: Grid,
    *,
    noted: Grid | None = None,
    trusted: bool = False,
    name: str = 'pos_embed',
) -> Grid:
    """Rows and columns of the patches in a checkpoint.

    A noted grid counts. Without one, as many patches as a square has are a square.

    Args:
        patches: Number of patches.
        own_grid: Rows and columns of the network that is to load it.
        noted: Grid that the checkpoint notes. Defaults to None.
        trusted: Whether as many patches as the network has are taken for its own grid where none
            is noted and the network's is no square. Defaults to False: it may be the transposed.
        name: What to call the embeddings in an error. Defaults to ``'pos_embed'``.

    Raises:
        ValueError: The noted grid has another number of patches, or none is noted and the number
            does not tell.
    """
    if noted is not None:
        if noted[0] * noted[1] != patches:
            raise ValueError(
                f'{name} of the checkpoint has {patches} patches, not the {noted[0]} x {noted[1]} '
                'that it notes'
            )
        return tuple(noted)
    rows, columns = own_grid
    side = isqrt(max(patches, 0))
    if rows * columns == patches and (trusted or rows == columns):
        return rows, columns
    if side > 0 and side * side == patches and rows * columns != patches:
        return side, side
    raise ValueError(
        f'{name} of the checkpoint has {patches} patches, the network {rows} x {columns}: how many '
        'rows and columns they were learnt for is not noted and cannot be told from their number. '
        'Note it: mcf_mm.weights.resize.note_grid(state_dict, grid), then save them again'
    )


def note_grid(state_dict: MutableMapping[str, Tensor], grid: Grid, module: str = '') -> None:
    """Notes the grid of the position embeddings in a state dict, beside the module's version.

    A class may do so in ``_save_to_state_dict``, where ``destination`` is the state dict.

    Args:
        state_dict: What ``state_dict()`` returned; an ``OrderedDict``.
        grid: Rows and columns of patches.
        module: Path of the module that has the embeddings, such as ``'backbone'``. Defaults to
            the network itself.
    """
    if not hasattr(state_dict, '_metadata'):
        state_dict._metadata = {}
    state_dict._metadata.setdefault(module, {})['grid'] = tuple(map(int, grid))


def noted_grid(state_dict: Mapping[str, Tensor], module: str = '') -> Grid | None:
    """The grid that a state dict notes for a module, see :func:`note_grid`.

    While weights are loaded, torch and MMEngine hand over the same as
    ``local_metadata.get('grid')``.
    """
    grid = getattr(state_dict, '_metadata', {}).get(module, {}).get('grid')
    return None if grid is None else tuple(grid)


def resize_bias_table(table: Tensor, window: int | Grid, new_window: int | Grid) -> Tensor:
    """Resizes a relative position bias table bicubically, as the release of Swin does.

    mmpretrain's own function needs ``scipy.interpolate.interp2d``, which SciPy 1.14 removed.

    Args:
        table: Biases, ``((2 rows - 1) (2 columns - 1) + extra, heads)``. Rows beyond the window
            (BEiT has three for its class token) stay as they are.
        window: Rows and columns of the window, or one number for both.
        new_window: Rows and columns that are wanted.

    Returns:
        ``((2 new_rows - 1) (2 new_columns - 1) + extra, heads)``; ``table`` for equal windows.

    Raises:
        ValueError: The table is smaller than that of ``window``.
    """
    size, new_size = (
        tuple(2 * side - 1 for side in ((sides, sides) if isinstance(sides, int) else sides))
        for sides in (window, new_window)
    )
    number = size[0] * size[1]
    if table.dim() != 2 or len(table) < number:
        raise ValueError(
            f'a relative position bias table has shape {tuple(table.shape)}; a window of {window} '
            f'needs at least ({number}, heads)'
        )
    if size == new_size:
        return table
    return torch.cat((_resize(table[None, :number], size, new_size)[0], table[number:]))


def fit_bias_tables(
    state_dict: MutableMapping[str, Tensor], own: Mapping[str, Tensor], prefix: str = ''
) -> list[str]:
    """Resizes in place the bias tables of a checkpoint for the windows of a network.

    Indices of these tables (``relative_position_index``) are dropped with them; the network has
    its own, which follow from its windows. Both windows are square.

    Args:
        state_dict: Weights of the checkpoint.
        own: State dict of the network.
        prefix: What stands before its names in the checkpoint. Defaults to nothing.

    Returns:
        Names of the tables that were resized, as the network has them.

    Raises:
        ValueError: A window is no square.
    """
    resized = []
    for name, table in own.items():
        there = state_dict.get(prefix + name)
        if not name.endswith('relative_position_bias_table') or there is None:
            continue
        if there.dim() != 2 or len(there) == len(table):
            continue
        windows = [_square_window(prefix + name, len(rows)) for rows in (there, table)]
        state_dict[prefix + name] = resize_bias_table(there, *windows)
        state_dict.pop(prefix + name.replace('bias_table', 'index'), None)
        resized.append(name)
    return resized


def _square_window(name: str, rows: int) -> int:
    for extra in (0, 3):  # three rows of BEiT are for its class token
        window = (isqrt(rows - extra) + 1) // 2
        if (2 * window - 1) ** 2 == rows - extra:
            return window
    raise ValueError(
        f"{name} has {rows} rows, which is no square window's (2 w - 1)^2: it cannot be resized"
    )


def _resize(values: Tensor, size: Grid, new_size: Grid) -> Tensor:
    """Bicubic resize of ``(L, rows * columns, C)``, computed in float32."""
    images = values.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
    resized = F.interpolate(images.float(), tuple(new_size), mode='bicubic', align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(values.dtype)
