"""Do these weights fit this network? One check for all who load them; torch alone is needed."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mcf_mm.weights.advice import advice
from mcf_mm.weights.unwrap import unwrap

__all__ = [
    'DERIVED',
    'check_finite',
    'check_slim_buffers',
    'check_weights',
    'describe_new',
    'fits',
    'matches',
    'unwrap',
]

#: Buffers that follow from the sizes of a network, and learnable gates: in a checkpoint or not.
DERIVED = (
    '*relative_position_index',
    '*attn_mask',
    '*num_batches_tracked',
    '*position_ids',
    '*.gate_scores',
)
#: First layer of an FFN that may read a part of its inputs, and the layer as wide as all of them.
_FFN_LAYERS = {'layers.0.0': 'layers.1', 'fc1': 'fc2', 'intermediate.dense': 'output.dense'}
#: What holds no infinity on purpose, by its name. A buffer may: a mask of attention does.
_WEIGHTS = re.compile(r'(weight|bias|embed|embeddings?|token|tokens|table|gamma)$')


def check_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str = 'the checkpoint',
    prefix: str = '',
    new: Collection[str] = (),
    resized: Collection[str] = (),
    ignore: Collection[str] = DERIVED,
    allow_new_head: bool = False,
) -> list[str]:
    """Checks that a checkpoint has each weight of a network, in its shape, and no others.

    Nothing is loaded. MMEngine would load what fits, say the rest in a warning, and leave it
    random.

    Args:
        model: The network, with the sizes that it is to have.
        state_dict: The weights, see :func:`unwrap`.
        source: What to call the checkpoint in an error. Defaults to ``'the checkpoint'``.
        prefix: What stands before the names of ``model`` there; names without it are not looked
            at. Defaults to nothing.
        new: Names (or patterns such as ``'neck.*'``) that a checkpoint of another task may lack.
        resized: Names or patterns of weights that the class resizes while it loads them, along
            their last dimension but one: position embeddings, bias tables.
        ignore: Names or patterns that are not looked at. Defaults to :data:`DERIVED`.
        allow_new_head: Whether a head (``head.*``, ``bbox_head.*``, ``roi_head.*`` ...) may be
            missing or have other sizes, as for another data set, and be left over. Defaults to
            False.

    Returns:
        Names of the weights that start anew, see :func:`describe_new`.

    Raises:
        ValueError: Weights are missing, have another shape or kind of number, or are left over;
            buffers of pruned layers make no sense. All are counted, the first of each named with
            its shapes.

    Example:
        >>> check_weights(detector, weights, source='dense.pth', new=('*det_token',))
        ['backbone.det_token']
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'

    def head(name: str) -> bool:
        return allow_new_head and name.split('.')[0].endswith('head')

    own = {name: part for name, part in model.state_dict().items() if not matches(name, ignore)}
    there = {
        name.removeprefix(prefix): part
        for name, part in state_dict.items()
        if name.startswith(prefix) and not matches(name, ignore)
    }
    missing = [name for name in own if name not in there]
    unlike = [
        name
        for name, part in own.items()
        if name in there and not fits(part, there[name], matches(name, resized))
    ]
    left_over = [name for name in there if name not in own and not head(name)]
    anew = [name for name in missing if head(name) or matches(name, new)]
    anew += [name for name in unlike if head(name)]
    missing, unlike = ([n for n in names if n not in anew] for names in (missing, unlike))
    kind, told = type(model).__name__, []
    if missing:
        told.append(
            f'lacks {len(missing)} of the weights of {kind}, the first {prefix + missing[0]!r}, '
            f'{_told(own[missing[0]])}'
        )
    if unlike:
        several = [
            f'{prefix + name} is {_told(there[name], own[name])}, '
            f'not {_told(own[name], there[name])}'
            for name in unlike[:3]
        ]
        told.append(f'has {_weights(unlike)} of another size than {kind}: {"; ".join(several)}')
    if left_over:
        told.append(
            f'has {_weights(left_over)} that {kind} lacks, the first '
            f'{prefix + left_over[0]!r}, '
            f'{_told(there[left_over[0]])}'
        )
    if told:
        shapes = (_shapes(own), _shapes(there), _shapes(state_dict))
        help_ = advice(*shapes, prefix, missing, unlike, left_over)
        raise ValueError(f'{source} {". It ".join(told)}. {help_}')
    check_slim_buffers(state_dict, source)
    return sorted(anew, key=list(own).index)


def describe_new(names: Collection[str]) -> str | None:
    """Says in one line which weights start anew, from :func:`check_weights`; None for none."""
    if not names:
        return None
    modules = dict.fromkeys(name.rpartition('.')[0] or name for name in names)
    first = ', '.join(list(modules)[:5]) + (', ...' if len(modules) > 5 else '')
    return f'{_weights(names)} not in the checkpoint, new from the start: {first}'


def check_finite(
    state_dict: Mapping[str, Tensor],
    source: str = 'the checkpoint',
    model: nn.Module | None = None,
) -> None:
    """Checks that no weight is NaN or infinite.

    Args:
        state_dict: The weights.
        source: What to call them in an error. Defaults to ``'the checkpoint'``.
        model: The network, which tells its parameters from its buffers: these may hold infinity on
            purpose. Defaults to None: names do.

    Raises:
        ValueError: A weight is NaN or infinite. All are counted, three named.
    """
    parameters = None if model is None else {name for name, _ in model.named_parameters()}
    broken = []
    for name, part in state_dict.items():
        if not isinstance(part, Tensor) or not part.is_floating_point():
            continue
        strict = _WEIGHTS.search(name) if parameters is None else name in parameters
        if not (part.isfinite() if strict else ~part.isnan()).all():
            broken.append(name)
    if broken:
        first = ', '.join(broken[:3]) + (', ...' if len(broken) > 3 else '')
        raise ValueError(
            f'{source} is NaN or infinite in {_weights(broken)}: {first}. Take an earlier '
            'checkpoint, or train again with a lower learning rate'
        )


def check_slim_buffers(state_dict: Mapping[str, Tensor], source: str = 'the checkpoint') -> None:
    """Checks what pruned layers keep: ``inputs`` of linear layers, ``sizes`` of attention.

    Args:
        state_dict: Weights in the names of any library.
        source: What to call them in an error. Defaults to ``'the checkpoint'``.

    Raises:
        ValueError: Indices are not ascending, negative or beyond the width of the network; the
            sizes of an attention are not those of its weights.
    """
    for name, part in state_dict.items():
        module, _, leaf = name.rpartition('.')
        if leaf == 'inputs' and f'{module}.weight' in state_dict:
            problem = _wrong_inputs(state_dict, module, part)
        elif leaf == 'sizes' and f'{module}.qkv.weight' in state_dict:
            problem = _wrong_sizes(state_dict, module, part)
        else:
            continue
        if problem:
            raise ValueError(f'{source}: {name} {problem}; the file is damaged or was changed')


def _wrong_inputs(state_dict: Mapping[str, Tensor], module: str, index: Tensor) -> str | None:
    if index.is_floating_point() or index.dim() not in (1, 2) or not index.numel():
        return f'are no indices: {index.dtype}, shape {tuple(index.shape)}'
    # Rows of old checkpoints have indices each, ascending too.
    if index.amin() < 0 or (index.diff() <= 0).any():
        return 'are not ascending, from 0 on'
    for first, second in _FFN_LAYERS.items():
        weight = state_dict.get(f'{module.removesuffix(first)}{second}.weight')
        if module.endswith(f'.{first}') and weight is not None and index.amax() >= len(weight):
            return f'go up to {int(index.amax())}, the network has {len(weight)} channels'
    return None


def _wrong_sizes(state_dict: Mapping[str, Tensor], module: str, sizes: Tensor) -> str | None:
    if sizes.is_floating_point() or sizes.shape != (3,) or (sizes < 1).any():
        return f'are not heads and channels per head, but {sizes.tolist()}'
    heads, queries, values = sizes.tolist()
    rows, columns = heads * (2 * queries + values), heads * values
    for path, dim, number in (('qkv', 0, rows), ('proj', 1, columns)):
        weight = state_dict.get(f'{module}.{path}.weight')
        if weight is not None and weight.shape[dim] != number:
            return (
                f'say {heads} heads of {queries} and {values} channels, which do not go with '
                f'{path}.weight {tuple(weight.shape)}'
            )
    return None


def _weights(names: Collection[str]) -> str:
    return f'{len(names)} weight{"" if len(names) == 1 else "s"}'


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name is one of ``patterns``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def fits(own: Tensor, there: Tensor, may_be_resized: bool) -> bool:
    """Whether a weight of a checkpoint has the shape and kind of number of the network's."""
    if not isinstance(own, Tensor) or not isinstance(there, Tensor):
        return True  # what a module stores beside its weights
    if own.is_floating_point() != there.is_floating_point():
        return False
    if may_be_resized and own.dim() == there.dim() >= 2:
        return (*own.shape[:-2], own.shape[-1]) == (*there.shape[:-2], there.shape[-1])
    return own.shape == there.shape


def _told(part: Tensor, other: Tensor | None = None) -> str:
    """Shape, and kind of number where that is the difference."""
    shape = str(tuple(getattr(part, 'shape', ())))
    if isinstance(other, Tensor) and isinstance(part, Tensor) and part.shape == other.shape:
        return f'{part.dtype} {shape}'
    return shape


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: getattr(part, 'shape', torch.Size()) for name, part in state_dict.items()}
