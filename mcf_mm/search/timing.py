"""Times of modules on their real inputs, measured side by side."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.units import Units

#: Runs that are timed together on a GPU, whose work is queued, as in a network.
QUEUED = 10


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        autocast: Type that torch.autocast computed in; None without it.
    """

    args: tuple
    kwargs: dict[str, Any]
    autocast: torch.dtype | None


@dataclass
class Recording:
    """What the units of a network were called with.

    Attributes:
        keys: Of each unit, what tells its calls apart: a key for each call.
        calls: The first call with each key. Only these are kept in memory.
        batch: Images in the batch; None if the network was not called as a whole.
    """

    keys: dict[str, list[tuple]]
    calls: dict[tuple, Call]
    batch: int | None = None


def record_calls(model: nn.Module, forward: Callable[[nn.Module], Any], units: Units) -> Recording:
    """Run a network once and note the calls of its units.

    Args:
        model: The network, in evaluation mode.
        forward: Runs one batch.
        units: Units whose modules are watched.

    Raises:
        ValueError: A unit was not run.
    """
    seen = Recording({unit.name: [] for unit in units}, {})
    device = device_of(model)

    def note(name: str, static: tuple) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            autocast = _autocast_type(device)
            key = (*static, len(seen.keys[name]), describe((args, kwargs)), autocast)
            seen.keys[name].append(key)
            seen.calls.setdefault(key, Call(args, kwargs, autocast))

        return hook

    def note_batch(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if tensors and tensors[0].dim():
            seen.batch = len(tensors[0])

    handles = [model.register_forward_pre_hook(note_batch, with_kwargs=True)]
    try:
        for unit in units:
            static = (type(unit.module), _shapes(unit.module), tuple(unit.sizes.items()))
            hook = note(unit.name, static)
            handles.append(unit.module.register_forward_pre_hook(hook, with_kwargs=True))
        with torch.inference_mode():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, keys in seen.keys.items() if not keys]
    if missing:
        raise ValueError(
            f'{missing[0]} is not run by forward (nor are {len(missing) - 1} others): its time '
            'cannot be measured'
        )
    return seen


def _shapes(module: nn.Module) -> tuple:
    return tuple((name, tuple(value.shape)) for name, value in module.named_parameters())


def describe(value: Any) -> Any:
    """What of an argument decides how long a call takes, as something that can be compared."""
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, Mapping):
        return tuple((key, describe(part)) for key, part in sorted(value.items()))
    if isinstance(value, tuple | list):
        return tuple(describe(part) for part in value)
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def run_calls(module: nn.Module, calls: list[Call], device: torch.device) -> None:
    """Repeat the calls of a unit."""
    for call in calls:
        if call.autocast is None:
            module(*call.args, **call.kwargs)
        else:
            with torch.autocast(device.type, call.autocast):
                module(*call.args, **call.kwargs)


def measure_times(
    works: list[tuple[Callable[[], Any], int]],
    device: torch.device,
    rounds: int,
    clock: Callable[[], float],
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Seconds of each work: the lower quartile over rounds that run all of them in turn.

    In turn, so that whatever else the machine does hits all of them alike; the lower quartile,
    because it slows some runs down and speeds none up.

    Args:
        works: What is timed, each with how often it is run on a GPU before its end is awaited.
        device: Where they run.
        rounds: Timed rounds, after one that is not timed.
        clock: Seconds now.
        progress: Called with (rounds done, rounds in all). Defaults to None.
    """
    times: list[list[float]] = [[] for _ in works]
    with torch.inference_mode():
        for number in range(rounds + 1):
            for own, (work, queued) in zip(times, works, strict=True):
                repeats = queued if device.type == 'cuda' else 1
                synchronize(device)
                start = clock()
                for _ in range(repeats):
                    work()
                synchronize(device)
                if number:
                    own.append((clock() - start) / repeats)
            if progress is not None:
                progress(number, rounds)
    return [quartile(own) for own in times]


def quartile(times: Sequence[float]) -> float:
    """The lower quartile: of 1 to 4 times the least, of 5 to 8 the second."""
    return sorted(times)[(len(times) - 1) // 4]


def default_clock(device: torch.device) -> Callable[[], float]:
    """The processor's time with one thread on the CPU, else the wall's.

    Other processes do not take away the former.
    """
    alone = device.type == 'cpu' and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def device_of(model: nn.Module) -> torch.device:
    """Where a network is.

    Raises:
        ValueError: It has no parameter, or they are on several devices.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        names = ', '.join(sorted(str(device) for device in devices)) or 'no device'
        raise ValueError(f'model must be on one device, it is on {names}')
    return devices.pop()


def machine(device: torch.device | str = 'cpu') -> dict[str, Any]:
    """Facts that times depend on: ``device``, ``threads`` (None on a GPU) and ``torch``."""
    device = torch.device(device)
    version = str(torch.__version__)
    if device.type == 'cuda':
        return {'device': torch.cuda.get_device_name(device), 'threads': None, 'torch': version}
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if device.type == 'cpu' and info.is_file():
        for line in info.read_text(errors='replace').splitlines():
            if line.startswith('model name'):
                name = line.partition(':')[2].strip()
                break
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': version}


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the modes of all modules are restored."""
    training = [module for module in model.modules() if module.training]
    model.train(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _autocast_type(device: torch.device) -> torch.dtype | None:
    """Type of torch.autocast now; None outside of it."""
    if hasattr(torch, 'get_autocast_dtype'):  # since torch 2.4, which warns of the others
        enabled = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if enabled else None
    if device.type == 'cuda':
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
