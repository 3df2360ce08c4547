"""Parameters and MACs of a network by the kind of its dimensions."""

from collections import Counter

import torch
from torch import nn

from mcf_mm.analysis.complexity import Complexity, Cost, num_channels, tensor_arguments
from mcf_mm.pruning import FFN, Unit, find_units, measure_costs

#: What costs are split into; biases are with their layers, all else is in the last.
KINDS = ('q/k', 'v', 'projection', 'attention products', 'ffn', 'other')


def complexity_by_kind(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Counts what one image costs, split by what pruning takes from.

    ``'q/k'``, ``'v'`` and ``'projection'`` are the layers of attentions, ``'attention products'``
    query times key and attention times value, which have no parameters. The totals are those of
    :func:`~mcf_mm.analysis.complexity.count_complexity`; networks with random proposals differ by
    those.

    Args:
        model: mmpretrain classifier, mmdet detector or any network that takes images ``(1, C, H,
            W)``. It stays as it is.
        shape: Height and width of the image in pixels.

    Returns:
        The whole, and :class:`~mcf_mm.analysis.complexity.Cost` of each of :data:`KINDS`.

    Raises:
        ValueError: Layers are masked, as MCF's ablations are: their zeros are of no kind.
    """
    if any(getattr(module, 'free_zeros', 0) for module in model.modules()):
        raise ValueError(
            'zeros of masked layers are of no kind: count by part (leave out --by-kind)'
        )
    arguments = tensor_arguments(model, shape)
    device = next(model.parameters()).device
    images = torch.zeros(1, num_channels(model), *shape, device=device)
    units = find_units(model)
    costs = measure_costs(model, lambda network: network(images, **arguments), units)
    params, macs = Counter(), Counter()
    for unit in units:
        params.update(_parameters(unit))
        macs.update(costs.macs_by_layer(unit.name))
    whole = costs.of({})
    params['other'] = whole['params'] - sum(params.values())
    macs['other'] = whole['macs'] - sum(macs.values())
    parts = {kind: Cost(params[kind], macs[kind]) for kind in KINDS}
    return Complexity(whole['params'], whole['macs'], parts)


def _parameters(unit: Unit) -> dict[str, int]:
    """Parameters of the layers of one unit, biases included."""

    def size(*layers: nn.Linear) -> int:
        return sum(parameter.numel() for layer in layers for parameter in layer.parameters())

    if isinstance(unit, FFN):
        return {'ffn': size(unit.fc1, unit.fc2)}
    heads, qk, v = unit.sizes.values()
    rows = size(*(getattr(unit.module, name) for name in unit.layout.qkv_names))
    values = rows * v // (2 * qk + v)  # all rows are alike
    return {'q/k': rows - values, 'v': values, 'projection': size(unit.proj)}
