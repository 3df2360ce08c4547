"""Any network of OpenMMLab with pruned FFNs, without a class of its own."""

from collections.abc import Mapping

from torch import nn

from mcf_mm.models.ffn_sizes import check_checkpoint, check_sizes
from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.pruning.targets import find_ffns
from mcf_mm.registry import MODELS


@MODELS.register_module(name='SlimModel')
def slim_model(base: str, ffn_sizes: Mapping[str, tuple[int, int]], **kwargs) -> nn.Module:
    """Builds a network of another class and gives its FFNs the sizes of a pruned one.

    For networks that have no slim class: DETR and its kin, timm's networks. What comes back is an
    object of the class ``base``, nothing is wrapped; the rest of its config stays as it was.

    Args:
        base: Type of the network, such as ``'mmdet.DETR'`` or ``'mmpretrain.TIMMBackbone'``.
        ffn_sizes: (C', H') by the path of the FFN in the network. FFNs that are not named stay
            dense.
        **kwargs: Arguments of ``base``.

    Raises:
        ValueError: There is no such FFN or a size is out of range; at loading, a checkpoint has
            other sizes or lacks weights.

    Example:
        >>> model = dict(
        ...     type='mcf_mm.SlimModel', base='mmdet.DETR',
        ...     ffn_sizes={'encoder.layers.0.ffn': (153, 1228)}, num_queries=100)  # as for DETR
    """
    model = MODELS.build(dict(type=base, **kwargs))
    ffns = {ffn.name: ffn for ffn in find_ffns(model)}
    for name, sizes in ffn_sizes.items():
        if name not in ffns:
            raise ValueError(f'ffn_sizes: {base} has no FFN {name!r}; it has {list(ffns)}')
        ffn = ffns[name]
        full = (ffn.width, ffn.fc1.out_features)
        for kind, size, largest in zip(('inputs', 'hiddens'), sizes, full, strict=True):
            check_sizes(f'{kind} of ffn_sizes[{name!r}]', [size], [largest])
        resize_ffn(ffn, *sizes)

    def before_load(state_dict: dict, prefix: str, *args) -> None:
        # A counter of normalisation that old checkpoints lack and that evaluation does not read.
        counters = [name for name in model.state_dict() if name.endswith('num_batches_tracked')]
        check_checkpoint(model, state_dict, prefix, counters)

    model._register_load_state_dict_pre_hook(before_load)
    return model
