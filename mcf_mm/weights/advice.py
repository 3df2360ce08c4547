"""What to do about weights that do not fit: one sentence for an error."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import prod

from mcf_mm.weights.names import LIBRARIES, guess, libraries

Shapes = Mapping[str, Sequence[int]]
#: Buffers that pruned layers have.
_PRUNED = re.compile(r'\.(inputs|sizes)$')
#: Weights that pruning makes smaller: those of FFNs and of attention.
_PRUNABLE = re.compile(
    r'\.(ffns?|mlp|attn|attention|self_attn|w_msa|intermediate|output)\.|\b(fc|linear)[12]\.'
)


def advice(
    own: Shapes,
    there: Shapes,
    everything: Shapes,
    prefix: str,
    missing: Sequence[str],
    unlike: Sequence[str],
    left_over: Sequence[str],
) -> str:
    """Says what to do.

    Args:
        own: Shapes of the network by name.
        there: Shapes of the checkpoint by the same names.
        everything: Shapes of the checkpoint by its own names.
        prefix: What stands before the names of the network there; ends in a dot, or is nothing.
        missing: Names that ``there`` lacks.
        unlike: Names of other shape.
        left_over: Names that ``own`` lacks.
    """
    if len(missing) > len(own) / 2:
        return _other_names(own, everything, prefix)
    slim = "use the slim.py that was written beside it, or sizes='auto'"
    if _pruned_layers(left_over, own):
        return f'It is of a pruned network: {slim}'
    if _pruned_layers(missing, there) or _all_prunable(unlike, own, there):
        return (
            'The network is pruned and the checkpoint is not pruned like it: use the '
            'slim.safetensors beside the slim.py, or the config of the dense network'
        )
    if _all_prunable(unlike, there, own):
        return f'FFNs or attention are smaller there: if it is of a pruned network, {slim}'
    if all(name.split('.')[0].endswith('head') for name in (*missing, *unlike, *left_over)):
        return (
            'Its head is another: set num_classes as in its training, or train on with load_from '
            'and tools/train.py, where the head starts anew'
        )
    return (
        'Use the config that it was trained with: the same width, depth, patch size, window and '
        'image size (img_size)'
    )


def _pruned_layers(names: Sequence[str], other: Shapes) -> bool:
    """Whether there are buffers of pruned layers among ``names`` that ``other`` has dense."""
    return any(
        _PRUNED.search(name) and {f'{module}.weight', f'{module}.qkv.weight'} & other.keys()
        for name in names
        for module in [name.rpartition('.')[0]]
    )


def _all_prunable(names: Sequence[str], smaller: Shapes, larger: Shapes) -> bool:
    """Whether FFNs and attention alone differ, each smaller in one than in the other."""
    tables = [name for name in names if name.endswith('bias_table')]
    return len(tables) < len(names) and all(
        _PRUNABLE.search(f'.{name}')
        and prod(smaller[name]) < prod(larger[name])
        # Another window changes the rows of a table, fewer heads its columns.
        and (name not in tables or smaller[name][0] == larger[name][0])
        for name in names
    )


def _other_names(own: Shapes, everything: Shapes, prefix: str) -> str:
    """Advice where most names are not in the checkpoint: of another library, or not all of it."""
    if not everything:
        return 'It is empty'
    told = f'Its names are {", ".join(map(repr, list(everything)[:3]))} ...'
    (family, source), (_, target) = _library(everything), _library(own)
    if target is None and any(name.startswith('backbone.') for name in own):
        target = 'mmpretrain'  # a detector that mcf_mm.weights.names does not know
    if source and target and source != target:
        if target not in libraries(family):
            target = 'mmpretrain'  # a classifier for YOLOS
        if source != target:
            return (
                f'{told}, those of {source}: convert it with tools/convert_checkpoint.py IN OUT '
                f'--to {target}'
            )
    found = _prefix(own, everything)
    if found:
        return f'{told}: set the prefix of init_cfg to {found!r}'
    if found == '':
        return f'{told}, without prefix: leave the prefix of init_cfg out'
    part = _prefix(everything, own)
    if part:
        return (
            f'{told}, without {part!r}, for it is a part of the network: load it there, with '
            f"{part}init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    return f'{told}: is it a checkpoint of this network?'


def _library(keys: Collection[str]) -> tuple[str | None, str | None]:
    """Family and library of names; those of a backbone are taken for a whole network's."""
    best = (len(keys) / 5, None, None)
    for before in ('', 'backbone.'):
        family, names, unknown = guess([before + key for key in keys])
        if len(unknown) < best[0]:
            library = names.library if names.library in LIBRARIES else 'huggingface'
            best = (len(unknown), family, library)
    return best[1:]


def _prefix(names: Collection[str], longer: Collection[str]) -> str | None:
    """What stands before most of ``names`` in ``longer``; None where most are not there."""
    by_end = {}
    for name in longer:
        parts = name.split('.')
        for start in range(min(4, len(parts))):
            by_end.setdefault('.'.join(parts[start:]), []).append(
                ''.join(f'{part}.' for part in parts[:start])
            )
    counts = Counter(prefix for name in names for prefix in by_end.get(name, ()))
    if not counts:
        return None
    prefix, number = counts.most_common(1)[0]
    return prefix if number > len(names) / 2 else None
