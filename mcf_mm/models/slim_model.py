"""Any network of OpenMMLab with pruned units, without a class of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mcf_mm.models.slim import check_checkpoint, expand_sizes, resize_all
from mcf_mm.pruning.find import find_units
from mcf_mm.registry import MODELS


@MODELS.register_module(name='SlimModel')
def slim_model(
    base: str,
    sizes: Mapping[str, Any] | None = None,
    ffn_sizes: Mapping[str, Sequence[int]] | None = None,
    **kwargs,
) -> nn.Module:
    """Build a network of another class and give its units the sizes of a pruned one.

    For networks that have no slim class: DETR and its kin, timm's networks. What comes back is an
    object of the class ``base``, nothing is wrapped; the rest of its config stays as it was.

    Args:
        base: Type of the network, such as ``'mmdet.DETR'`` or ``'mmpretrain.TIMMBackbone'``.
        sizes: Number of elements by unit and kind, ``{unit: {kind: n}}``, or by kind alone as for
            :class:`mcf_mm.models.slim.SlimUnits`. What is not named stays dense.
        ffn_sizes: (C', H') by the path of the FFN, for configs of mcf_mm 0.1.
        **kwargs: Arguments of ``base``.

    Raises:
        ValueError: There is no such unit or kind or a size is out of range; at loading, a
            checkpoint has other sizes or lacks weights.

    Example:
        >>> model = dict(
        ...     type='mcf_mm.SlimModel', base='mmdet.DETR', num_queries=100,  # ... as for DETR
        ...     sizes={'encoder.layers.0.ffn': dict(inputs=153, hidden=1228)})
    """
    if sizes is not None and ffn_sizes is not None:
        raise ValueError('give either sizes or ffn_sizes, not both')
    argument = 'sizes'
    if ffn_sizes is not None:
        argument = 'ffn_sizes'
        sizes = {
            name: dict(zip(('inputs', 'hidden'), pair, strict=True))
            for name, pair in ffn_sizes.items()
        }
    model = MODELS.build(dict(type=base, **kwargs))
    units = find_units(model)
    resize_all(units, expand_sizes(units, sizes or {}, f'{argument} of {base}'))

    def before_load(state_dict: dict, prefix: str, *args) -> None:
        # A counter of normalisation that old checkpoints lack and that evaluation does not read.
        counters = [name for name in model.state_dict() if name.endswith('num_batches_tracked')]
        check_checkpoint(model, state_dict, prefix, counters)

    model._register_load_state_dict_pre_hook(before_load)
    return model
