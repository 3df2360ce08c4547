"""Solve layer after layer anew, front to back, on the network that is cut already (ours)."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.moments import sample_tokens, take
from mcf_mm.pruning.observers import CalibrationError
from mcf_mm.pruning.solves import augmented, regularise
from mcf_mm.pruning.streams import Tokens, sum_over_processes
from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.units import Unit

#: Ridge term of the solves, as a share of the mean second moment (ours): it draws to the weights
#: that the layer has, not to zero.
RIDGE = 1e-2


class _Enough(Exception):
    """A forward pass has come as far as it is needed."""


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Copies of units of a network as they are, for :func:`solve_sequentially`."""
    return {name: copy.deepcopy(model.get_submodule(name)) for name in names}


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other modules in the place of those with these names, for a while."""

    def put(name: str, module: nn.Module) -> nn.Module:
        parent, _, child = name.rpartition('.')
        owner = model.get_submodule(parent)
        before = getattr(owner, child)
        setattr(owner, child, module)
        return before

    before = {name: put(name, module) for name, module in modules.items()}
    try:
        yield
    finally:
        for name, module in before.items():
            put(name, module)


def check_batches(batches: Iterable[Any], given: bool = True) -> None:
    """Check that images can be gone over once for each layer.

    Args:
        batches: The images.
        given: Whether nobody else will look at them first. Defaults to True.

    Raises:
        CalibrationError: There are none.
        ValueError: They can be iterated over only once.
    """
    if iter(batches) is batches:
        raise ValueError(
            "compensation='sequential' goes over the images once for each layer: give a list or a "
            f'data loader as batches, got {type(batches).__name__}, which can be used only once'
        )
    if given and isinstance(batches, Sized) and len(batches) == 0:
        raise CalibrationError('calibration: there are no images (batches is empty)')


@torch.no_grad()
def solve_sequentially(
    model: nn.Module,
    dense: Mapping[str, nn.Module],
    batches: Iterable[Any],
    structure: Structure,
    forward: Callable[[Any], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    shared: bool = False,
) -> None:
    """Bring each layer of a cut network close to what the dense one gives there, in place.

    Each layer that reads pruned elements gets the weights that bring its output, on the inputs that
    the cut network really gives it, closest to the output of the dense network (least squares). The
    layers before it are solved already, so it makes up for what they could not.

    Each layer takes a pass over the images up to that layer, through both networks.

    Args:
        model: The network, cut to ``structure``. It runs in evaluation mode; its modes are
            restored.
        dense: Its units as they were before the cut, see :func:`copies`.
        batches: Calibration images; iterated over once for each layer.
        structure: What was kept.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        progress: Called with the number of layers that are done and of all. Defaults to None.
        shared: The processes of ``torch.distributed`` share the images and end with equal weights.
            Defaults to False.

    Raises:
        CalibrationError: There are no images, or values are not finite.
        ValueError: ``batches`` can be iterated over only once.
    """
    check_batches(batches)
    units = find_units(model).by_name
    with replaced(model, dense):
        full = find_units(model).by_name
    work = [
        (name, place) for name in units if name in structure for place, _ in units[name].consumers()
    ]
    modes = [part for part in model.modules() if part.training]
    model.train(False)
    try:
        for done, (name, place) in enumerate(work):
            rows = structure[name].get('hidden') if place == 'inputs' else None
            solved = _solved(
                model,
                dense,
                units[name],
                full[name],
                place,
                rows,
                batches,
                forward or model,
                shared,
            )
            layer = dict(units[name].consumers())[place]
            layer.weight.data.copy_(solved[:, :-1])
            layer.bias.data.copy_(solved[:, -1])
            if progress is not None:
                progress(done + 1, len(work))
    finally:
        for part in modes:
            part.training = True


def _solved(
    model: nn.Module,
    dense: Mapping[str, nn.Module],
    unit: Unit,
    full: Unit,
    place: str,
    rows: Tensor | None,
    batches: Iterable[Any],
    run: Callable[[Any], Any],
    shared: bool,
) -> Tensor:
    """Weight and bias of one layer, solved anew, ``(O, I + 1)``."""
    layer, wanted = (dict(part.consumers())[place] for part in (unit, full))
    tokens = Tokens(model)
    seen: dict[str, Tensor] = {}

    def note_output(module: nn.Module, args: Any, out: Tensor) -> None:
        seen['output'] = out
        raise _Enough

    def note_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen['input'] = args[0]
        raise _Enough

    weight = augmented(layer)
    moments = weight.new_zeros(weight.shape[1], weight.shape[1])
    cross = weight.new_zeros(weight.shape)
    handles = tokens.attach([unit])
    try:
        for batch in batches:
            with replaced(model, dense):
                _run_to(run, batch, wanted.register_forward_hook(note_output))
            _run_to(run, batch, layer.register_forward_pre_hook(note_input))
            x, counted = tokens.split(unit, seen['input'])
            y, _ = tokens.split(unit, seen['output'])
            if getattr(layer, 'inputs', None) is not None:
                x = x.index_select(2, layer.inputs)
            if rows is not None:
                y = y.index_select(2, rows.to(y.device))
            chosen, share = sample_tokens(x, counted)
            x, y = take(x, chosen), take(y, chosen)
            x = torch.cat((x, x.new_ones(*x.shape[:2], 1)), 2) * share.sqrt()[..., None]
            y = (y * share.sqrt()[..., None]).flatten(0, 1)
            x = x.flatten(0, 1)
            moments += (x.T @ x).double()
            cross += (y.T @ x).double()
    finally:
        for handle in handles:
            handle.remove()
    if shared:
        moments, cross = sum_over_processes(moments), sum_over_processes(cross)
    if not float(moments[-1, -1]) > 0:
        raise CalibrationError('calibration: there are no images')
    size = moments[-1, -1].clone()
    moments, cross = moments / size, cross / size
    change = cross - weight @ moments
    solved = weight + torch.linalg.solve(regularise(moments, RIDGE), change.T).T
    if not solved.isfinite().all():
        raise CalibrationError(f'the solution for {unit.name} ({place}) is not finite')
    return solved


def _run_to(run: Callable[[Any], Any], batch: Any, hook: RemovableHandle) -> None:
    """Run a network up to the hook that ends it."""
    try:
        run(batch)
    except _Enough:
        pass
    finally:
        hook.remove()
