"""Makes a network small in place: every ``nn.Parameter`` stays the same object."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.layers import SlimLinear
from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.token_units import Tokens, token_flow
from mcf_mm.pruning.tokens import TokenReduction, reduce_tokens
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN, Attention


def cut(
    model: nn.Module, structure: Structure, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Cut the units of ``model`` down to ``structure``.

    Parameters shrink in place and the optimizer's state with them, so parameter groups, schedulers
    and whatever else holds the parameters stay valid. fc1 gathers the inputs that it keeps, fc2's
    bias stays (section 3.4 and figure 3 of the MCF paper); an attention loses whole heads, or
    channels of each head.

    Args:
        model: The network.
        structure: What is kept, numbered as the network is now.
        optimizer: Optimizer whose state is to shrink along. Defaults to None.

    Raises:
        ValueError: ``structure`` names a unit or an element that ``model`` lacks, or the state of
            the optimizer cannot be cut. Nothing is changed then.
    """
    found = find_units(model)
    units = found.by_name
    work = []
    for name in structure:
        if name not in units:
            raise ValueError(f'the model has no unit {name!r}; it has {list(units)}')
    # In the order of the forward pass: which tokens arrive depends on those that were dropped.
    for name in (name for name in units if name in structure):
        kinds = structure[name]
        unit = units[name]
        kept = unit.complete(kinds)
        keeps = unit.keeps(kept)
        for path, indices in keeps.items():
            check_state(unit.parameter(path), indices, optimizer, f'{name}.{path}')
        if isinstance(unit, Attention):
            _check_class(unit)
        if isinstance(unit, Tokens):
            _check_class(unit.attention)
            _check_block(unit)
        work.append((unit, kept, keeps))
    tokens = {name: kinds for name, kinds in structure.items() if 'tokens' in kinds}
    token_flow(found, Structure(tokens).sizes)
    for unit, kept, keeps in work:
        if isinstance(unit, Attention):
            unit.layout.adopt(unit.module)
        for path, indices in keeps.items():
            shrink(unit.parameter(path), indices, optimizer)
        unit.describe(kept)


def _check_class(unit: Attention) -> None:
    """Refuse an attention that does not compute what the class that replaces it computes."""
    module, layout = unit.module, unit.layout
    if isinstance(module, layout):
        return  # replaced before
    layer = getattr(module, layout.qkv_names[0])
    tokens = getattr(module, 'relative_position_index', torch.empty(5, 0)).shape[0]
    x = torch.linspace(-1, 1, tokens * layer.in_features, dtype=torch.double)
    x = x.sin().view(1, tokens, -1).to(layer.weight)
    modes = [part for part in module.modules() if part.training]
    module.train(False)
    adopted = copy.copy(module)  # of the same parts
    with torch.no_grad():
        before = module(x)
        layout.adopt(adopted)
        after = adopted(x)
    for part in modes:
        part.training = True
    before, after = (y[0] if isinstance(y, tuple) else y for y in (before, after))
    tolerance = 1e-4 if x.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(before, after, atol=tolerance * float(before.abs().max()), rtol=0):
        raise ValueError(
            f'{unit.name} ({type(module).__name__}) does not compute plain attention: its heads, '
            'qk and v cannot be pruned'
        )


def _check_block(unit: Tokens) -> None:
    """Refuse a block that does not compute what the class that replaces it computes."""
    if unit.is_pruned:
        return  # replaced before
    block, weight = unit.module, unit.attention.proj.weight
    number = unit.least + 4
    x = torch.linspace(-1, 1, number * len(weight), dtype=torch.double)
    x = x.sin().view(1, number, -1).to(weight)
    modes = [part for part in block.modules() if part.training]
    block.train(False)
    small = copy.deepcopy(block)
    attention = small.get_submodule(unit.attention.name.removeprefix(f'{unit.name}.'))
    unit.attention.layout.adopt(attention)
    everything = TokenReduction(number, number, unit.first, unit.last, unit.readers)
    reduce_tokens(small, everything)
    with torch.no_grad():
        before, after = block(x), small(x)
    for part in modes:
        part.training = True
    if not torch.allclose(before, after, atol=1e-3 * float(before.abs().max()), rtol=0):
        raise ValueError(
            f'{unit.name} ({type(block).__name__}) does not compute attention and FFN one after '
            'the other: its tokens cannot be dropped'
        )


def shrink(
    parameter: nn.Parameter | None,
    kept: tuple[Tensor | None, ...],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Keep some entries of ``parameter``, of its gradient and of its optimizer state.

    Args:
        parameter: Changed in place; None (a layer without bias) is passed over.
        kept: Indices for each leading dimension, None for all.
        optimizer: Optimizer that may hold state for ``parameter``. Defaults to None.

    Raises:
        ValueError: The state cannot be cut.
    """
    if parameter is None:
        return
    shape = parameter.shape
    with torch.no_grad():
        # The gradient is one only while some are being accumulated.
        grad, parameter.grad = parameter.grad, None
        parameter.data = _select(parameter.data, shape, kept)
        parameter.grad = None if grad is None else _select(grad, shape, kept)
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = _cut_state(value, shape, kept, key)


def check_state(
    parameter: nn.Parameter | None,
    kept: tuple[Tensor | None, ...],
    optimizer: torch.optim.Optimizer | None,
    name: str,
) -> None:
    """Check that the optimizer's state of a parameter can be cut.

    Raises:
        ValueError: It cannot; the message names parameter, optimizer and state.
    """
    if parameter is None or optimizer is None:
        return
    for key, value in optimizer.state.get(parameter, {}).items():
        try:
            if isinstance(value, Tensor):
                _cut_state(value, parameter.shape, kept, key)
        except ValueError as error:
            raise ValueError(
                f'{type(optimizer).__name__} cannot go on after surgery: {name}: {error}. Take an '
                'optimizer with state of the shape of its parameters, such as AdamW or SGD'
            ) from None


def _cut_state(
    value: Tensor, shape: torch.Size, kept: tuple[Tensor | None, ...], key: str
) -> Tensor:
    """Cut one tensor of an optimizer's state; a step counter stays as it is."""
    if value.numel() == 1:
        return value
    if value.dim() == len(shape) and all(
        own in (1, full) for own, full in zip(value.shape, shape, strict=True)
    ):
        return _select(value, shape, kept)
    # Factored second moments of Adafactor: one without the last, one without the last but one.
    if len(shape) >= 2 and value.shape == shape[:-1] and 'row' in key:
        return _select(value, shape[:-1], kept[: len(shape) - 1])
    if len(shape) >= 2 and value.shape == shape[:-2] + shape[-1:] and 'col' in key:
        index = (*kept, *(None,) * (len(shape) - len(kept)))
        return _select(value, value.shape, index[:-2] + index[-1:])
    raise ValueError(
        f'its state {key!r} has shape {tuple(value.shape)}, which does not tell what belongs to '
        f'which entry of the parameter {tuple(shape)}'
    )


def _select(tensor: Tensor, shape: torch.Size, kept: tuple[Tensor | None, ...]) -> Tensor:
    for dim, index in enumerate(kept):
        # A dimension of 1 is shared by all entries.
        if index is not None and tensor.shape[dim] == shape[dim]:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous()


def resize(unit: Unit, sizes: Mapping[str, int]) -> None:
    """Give a unit the sizes of weights that are about to be loaded.

    Entries that both sizes have are kept, new ones are zero; the first inputs are selected.

    Args:
        unit: Unit to change in place.
        sizes: Number of elements by kind; those that are not named stay.

    Raises:
        ValueError: A kind is unknown.
    """
    if unknown := set(sizes) - set(unit.sizes):
        raise ValueError(f'{unit.name} has no {sorted(unknown)}: it has {list(unit.sizes)}')
    new = {**unit.sizes, **sizes}
    if isinstance(unit, Tokens):
        unit.keep(new['tokens'])
    elif new != unit.sizes:
        if isinstance(unit, FFN):
            _resize_ffn(unit, new)
        elif isinstance(unit, Attention):
            _resize_attention(unit, new)
        else:
            raise TypeError(f'{unit.name} must be an FFN, an attention or tokens, got {unit}')


def _resize_ffn(ffn: FFN, sizes: Mapping[str, int]) -> None:
    inputs, hidden = sizes['inputs'], sizes['hidden']
    _reshape(ffn.fc1.weight, hidden, inputs)
    _reshape(ffn.fc1.bias, hidden)
    _reshape(ffn.fc2.weight, ffn.width, hidden)
    if isinstance(fc1 := ffn.fc1, SlimLinear):
        fc1.inputs = torch.arange(ffn.width, device=fc1.weight.device)
    ffn.describe({'inputs': torch.arange(inputs)})


def _resize_attention(attention: Attention, sizes: Mapping[str, int]) -> None:
    module, layout = attention.module, attention.layout
    layout.adopt(module)
    heads, qk, v = (sizes[kind] for kind in ('heads', 'qk', 'v'))
    rows = [heads * qk, heads * qk, heads * v]
    layers = [getattr(module, name) for name in layout.qkv_names]
    for layer, number in zip(layers, rows if len(layers) == 3 else [sum(rows)], strict=True):
        _reshape(layer.weight, number, layer.weight.shape[1])
        _reshape(layer.bias, number)
    proj = attention.proj
    _reshape(proj.weight, proj.weight.shape[0], heads * v)
    for name in layout.per_head_names:
        table = getattr(module, name)
        _reshape(table, table.shape[0], heads)
    layout.adopt(module, (heads, qk, v))


def _reshape(parameter: Tensor | None, *shape: int) -> None:
    """Give a parameter a shape; the entries of both shapes stay."""
    if parameter is not None:
        common = tuple(slice(0, min(pair)) for pair in zip(shape, parameter.shape, strict=True))
        data = parameter.data.new_zeros(shape)
        data[common] = parameter.data[common]
        parameter.data = data
