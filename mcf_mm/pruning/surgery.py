"""Makes a network small in place: every ``nn.Parameter`` stays the same object."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mcf_mm.pruning.slim import AlignedLinear, RowSparseLinear, SlimLinear
from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.targets import FFN, find_ffns


def prune_ffns(
    model: nn.Module, structure: Structure, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Cuts the FFNs of ``model`` down to ``structure``.

    fc1 becomes H' x C' and gathers its inputs, fc2 becomes C x H', b1 loses the dropped units and
    b2 stays (section 3.4, figure 3). Parameters shrink in place and the optimizer's moments with
    them, so parameter groups, schedulers and whatever else holds the parameters stay valid.

    Args:
        model: The network, dense in every FFN that ``structure`` names.
        structure: What is kept.
        optimizer: Optimizer whose state is to shrink along. Defaults to None.

    Raises:
        ValueError: ``structure`` names an FFN that ``model`` lacks, or does not fit its size.
    """
    ffns = {ffn.name: ffn for ffn in find_ffns(model)}
    for name, kept in structure.items():
        if name not in ffns:
            raise ValueError(f'the model has no FFN {name!r}; it has {list(ffns)}')
        ffn = ffns[name]
        largest = (int(kept.inputs.max()) + 1, int(kept.hiddens.max()) + 1)
        if largest[0] > ffn.sizes[0] or largest[1] > ffn.sizes[1]:
            raise ValueError(
                f'{name} has {ffn.sizes[0]} inputs and {ffn.sizes[1]} hidden units; the structure '
                f'keeps up to input {largest[0] - 1} and unit {largest[1] - 1}'
            )
    for name, kept in structure.items():
        ffn = ffns[name]
        device = ffn.fc1.weight.device
        inputs, hiddens = kept.inputs.to(device), kept.hiddens.to(device)
        shrink(ffn.fc1.weight, (hiddens, inputs), optimizer)
        shrink(ffn.fc1.bias, (hiddens,), optimizer)
        shrink(ffn.fc2.weight, (None, hiddens), optimizer)
        _describe(ffn, inputs)


def compact_rows(
    model: nn.Module,
    masks: Mapping[str, tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Drops the zeros of every row: CRS without X-Transformation (section 3.3, figure 2b).

    Parameters and the optimizer's moments shrink in place, as in :func:`prune_ffns`.

    Args:
        model: The network, dense in every FFN of ``masks``.
        masks: What CRS keeps of W1, bool ``(H, C)``, and of W2, bool ``(C, H)``, by FFN name;
            equally many in every row.
        optimizer: Optimizer whose state is to shrink along. Defaults to None.
    """
    for ffn in find_ffns(model):
        for path, mask in zip((ffn.fc1_path, ffn.fc2_path), masks.get(ffn.name, ()), strict=False):
            linear = ffn.module.get_submodule(path)
            rows, channels = mask.shape
            # argsort of a mask: the kept indices of each row, ascending.
            order = mask.int().argsort(dim=1, descending=True, stable=True)
            inputs = order[:, : int(mask[0].sum())].to(linear.weight.device)
            _cut(linear.weight, lambda tensor, index=inputs: tensor.gather(1, index), optimizer)
            ffn.replace(path, RowSparseLinear.from_linear(linear, inputs, channels))


def shrink(
    parameter: nn.Parameter | None,
    kept: tuple[Tensor | None, ...],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Keeps some entries of ``parameter``, its gradient and optimizer states of its shape.

    Args:
        parameter: Changed in place; None (a layer without bias) is passed over.
        kept: Indices for each leading dimension, None for all.
        optimizer: Optimizer that may hold state for ``parameter``. Defaults to None.
    """
    if parameter is None:
        return

    def select(tensor: Tensor) -> Tensor:
        for dim, index in enumerate(kept):
            if index is not None:
                tensor = tensor.index_select(dim, index)
        return tensor.contiguous()

    _cut(parameter, select, optimizer)


def _cut(
    parameter: nn.Parameter,
    cut: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Applies ``cut`` to a parameter and to every optimizer state of its shape."""
    shape = parameter.shape
    with torch.no_grad():
        # The gradient is one only while some are being accumulated.
        grad, parameter.grad = parameter.grad, None
        parameter.data = cut(parameter.data)
        parameter.grad = None if grad is None else cut(grad)
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                state[key] = cut(value)


def resize_ffn(
    ffn: FFN,
    num_inputs: int,
    num_hiddens: int,
    selection: str = 'layer',
    full_hiddens: int | None = None,
) -> None:
    """Gives an FFN the sizes of weights that are about to be loaded.

    Entries that both sizes have are kept, new ones are zero; the first inputs are selected.

    Args:
        ffn: FFN to change in place.
        num_inputs: C', at most ``ffn.width``.
        num_hiddens: H'.
        selection: ``'layer'``, or ``'row'`` for :class:`RowSparseLinear`. Defaults to
            ``'layer'``.
        full_hiddens: H, which the network of ``'row'`` keeps. Defaults to the number of rows that
            fc1 has now.
    """
    if (*ffn.sizes, selection) == (num_inputs, num_hiddens, ffn.selection):
        return

    def resize(parameter: nn.Parameter | None, *shape: int) -> None:
        if parameter is not None:
            common = tuple(slice(0, min(pair)) for pair in zip(shape, parameter.shape, strict=True))
            data = parameter.data.new_zeros(shape)
            data[common] = parameter.data[common]
            parameter.data = data

    full_hiddens = full_hiddens or ffn.fc1.out_features
    rows = full_hiddens if selection == 'row' else num_hiddens
    resize(ffn.fc1.weight, rows, num_inputs)
    resize(ffn.fc1.bias, rows)
    resize(ffn.fc2.weight, ffn.width, num_hiddens)
    if selection == 'row':
        for path, channels in ((ffn.fc1_path, ffn.width), (ffn.fc2_path, full_hiddens)):
            linear = ffn.module.get_submodule(path)
            inputs = torch.arange(linear.weight.shape[1]).repeat(len(linear.weight), 1)
            ffn.replace(path, RowSparseLinear.from_linear(linear, inputs, channels))
    else:
        _describe(ffn, torch.arange(num_inputs))


def _describe(ffn: FFN, inputs: Tensor) -> None:
    """Lets the two layers say the sizes of their weights, and fc1 select ``inputs``.

    An FFN that reads all inputs has nothing to gather.
    """
    if isinstance(ffn.fc2, RowSparseLinear):
        ffn.replace(ffn.fc2_path, _plain(ffn.fc2))
    fc1 = _plain(ffn.fc1)
    if len(inputs) < ffn.width:
        ffn.replace(ffn.fc1_path, SlimLinear.from_linear(fc1, inputs))
    else:
        ffn.replace(ffn.fc1_path, AlignedLinear.from_linear(fc1))
    ffn.fc2.in_features = ffn.fc2.weight.shape[1]


def _plain(linear: nn.Linear) -> nn.Linear:
    """A plain linear layer with the same parameters."""
    plain = nn.Linear(1, 1, device='meta')
    plain.weight, plain.bias = linear.weight, linear.bias
    plain.out_features, plain.in_features = linear.weight.shape
    return plain.train(linear.training)
