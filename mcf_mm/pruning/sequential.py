"""Solve layer after layer anew, front to back, on the network that is cut already (ours)."""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.layers import SlimLinear
from mcf_mm.pruning.moments import sample_tokens, take
from mcf_mm.pruning.observers import CalibrationError
from mcf_mm.pruning.solves import augmented, regularise
from mcf_mm.pruning.streams import Tokens, gram, sum_over_processes
from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.swap import replaced
from mcf_mm.pruning.unit import Unit

#: Ridge term of the solves, as a share of the mean second moment (ours): it draws to the weights
#: that the layer has, not to zero.
RIDGE = 0.3


class _Enough(Exception):
    """A forward pass has come as far as it is needed."""


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
    layers before it are solved already, so it makes up for what they could not: where a module adds
    the output to what bypasses the layer, as a residual block does, the sum is to be as in the
    dense network, see :func:`find_sum`.

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
    check_batches(batches, given=not shared)  # another process may have all of few images
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
    bypassed: Sum | None = None
    looked = place == 'inputs'  # fc1 has no bypass

    weight = augmented(layer)
    moments = weight.new_zeros(weight.shape[1], weight.shape[1])
    cross = weight.new_zeros(weight.shape)
    handles = tokens.attach([unit])
    try:
        for batch in batches:
            with replaced(model, dense):
                if not looked:
                    bypassed, looked = find_sum(model, run, batch, unit.name, wanted), True
                of_dense = _seen(model, run, batch, wanted, bypassed)
            of_cut = _seen(model, run, batch, layer, bypassed)
            x, counted = tokens.split(unit, of_cut.input)
            y = of_dense.output
            if bypassed is not None:
                y = y + (of_dense.bypass - of_cut.bypass) * bypassed.inverse
            y, _ = tokens.split(unit, y)
            if isinstance(layer, SlimLinear):
                x = x.index_select(2, layer.inputs)
            if rows is not None:
                y = y.index_select(2, rows.to(y.device))
            chosen, share = sample_tokens(x, counted)
            x, y = take(x, chosen), take(y, chosen)
            x = torch.cat((x, x.new_ones(*x.shape[:2], 1)), 2) * share.sqrt()[..., None]
            y = (y * share.sqrt()[..., None]).flatten(0, 1)
            x = x.flatten(0, 1)
            moments += gram(x).double()
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


@dataclass
class Sum:
    """Where the output of a layer is added to what bypasses it.

    Attributes:
        module: Name of the module that gives the sum.
        factor: Of each channel of the output in the sum, ``(C,)``: 1, or what layer scale says.
    """

    module: str
    factor: Tensor

    @property
    def inverse(self) -> Tensor:
        """One over the factor; 0 for channels that do not enter the sum."""
        small = self.factor.abs() <= 1e-6 * self.factor.abs().max()
        return torch.where(small, 0, 1 / self.factor.masked_fill(small, 1))


@torch.no_grad()
def find_sum(
    model: nn.Module, run: Callable[[Any], Any], batch: Any, unit: str, layer: nn.Module
) -> Sum | None:
    """The module that adds the output of a layer to what bypasses it.

    It is tried: a number is added to each channel of the output, and the sum must change by that
    number, times a factor of the channel, in all tokens of all images. The unit itself is looked
    at, and the two modules around it.

    Args:
        model: A network in evaluation mode.
        run: Runs it on one batch.
        batch: Some images.
        unit: Name of the unit.
        layer: Its last layer.

    Returns:
        None where there is no such module, as around attention, after which the FFN comes before
        the module ends, or where a norm follows.
    """
    around = [unit]
    while around[-1] and len(around) < 3:
        around.append(around[-1].rpartition('.')[0])
    around = [name for name in around if name]
    outputs: dict[str, list[Tensor]] = {name: [] for name in around}
    own: list[Tensor] = []
    change: Tensor | None = None

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            outputs[name].append(_first(out))

        return hook

    def moved(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        own.append(out)
        return None if change is None else out + change

    handles = [layer.register_forward_hook(moved)]
    handles += [model.get_submodule(name).register_forward_hook(note(name)) for name in around]
    last = model.get_submodule(around[-1]).register_forward_hook(_stop)
    try:
        _run_to(run, batch, last)
        size = own[0].abs().mean()
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, own[0].shape[-1:], generator=generator) * 2.0 - 1
        change = (size * signs).to(own[0])
        last = model.get_submodule(around[-1]).register_forward_hook(_stop)
        _run_to(run, batch, last)
    finally:
        for handle in handles:
            handle.remove()
    for name in around:
        if len(outputs[name]) != 2 or len(own) != 2:
            continue  # called several times, or not at all
        before, after = outputs[name]
        if not isinstance(before, Tensor) or before.shape != own[0].shape:
            continue
        factors = ((after - before) / change).flatten(0, -2)
        factor = factors.mean(0)
        if not (factors - factor).abs().max() <= 1e-2 * factor.abs().max():
            return None
        bypass = before - own[0] * factor
        if bypass.abs().max() > 1e-3 * before.abs().max():
            return Sum(name, factor)
    return None


class _Seen(NamedTuple):
    """What a network has at a layer.

    Attributes:
        input: What the layer reads.
        output: What it gives.
        bypass: What is added to it; zero without a sum.
    """

    input: Tensor
    output: Tensor
    bypass: Tensor | float = 0.0


def _seen(
    model: nn.Module, run: Callable[[Any], Any], batch: Any, layer: nn.Module, bypassed: Sum | None
) -> _Seen:
    """Run a network as far as needed."""
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.update(input=args[0], output=out)
        if bypassed is None:
            raise _Enough

    def note_sum(module: nn.Module, args: Any, out: Any) -> None:
        seen['sum'] = _first(out)
        raise _Enough

    handle = layer.register_forward_hook(note)
    if bypassed is None:
        _run_to(run, batch, handle)
        return _Seen(**seen)
    try:
        owner = model.get_submodule(bypassed.module)
        _run_to(run, batch, owner.register_forward_hook(note_sum))
    finally:
        handle.remove()
    total = seen.pop('sum')
    return _Seen(**seen, bypass=total - seen['output'] * bypassed.factor)


def _first(out: Any) -> Any:
    """The first of several outputs, as Hugging Face's layers have."""
    return out[0] if isinstance(out, tuple) else out


def _stop(module: nn.Module, args: Any, out: Any) -> None:
    raise _Enough


def _run_to(run: Callable[[Any], Any], batch: Any, hook: RemovableHandle) -> None:
    """Run a network up to the hook that ends it."""
    try:
        run(batch)
    except _Enough:
        pass
    finally:
        hook.remove()
