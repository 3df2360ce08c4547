"""Images per second of two networks, measured side by side."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from mcf_mm.analysis.complexity import count_complexity, num_channels, tensor_arguments
from mcf_mm.pruning import SlimLinear, find_ffns

#: Passes of each network that are not timed; torch.compile works in the first.
WARM_UP = 2


@dataclass(frozen=True)
class Speed:
    """What one network costs and how fast it is.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulate operations for one image.
        images_per_second: Median over the timed passes.
    """

    params: int
    macs: int
    images_per_second: float


@dataclass(frozen=True)
class Comparison:
    """Two networks, :class:`Speed` by name, the one with more MACs usually first."""

    networks: dict[str, Speed]

    @property
    def macs_ratio(self) -> float:
        """MACs of the first over those of the second: how much faster the second could be."""
        first, second = self.networks.values()
        return first.macs / second.macs

    @property
    def throughput_ratio(self) -> float:
        """Images per second of the second network over those of the first."""
        first, second = self.networks.values()
        return second.images_per_second / first.images_per_second

    @property
    def share(self) -> float:
        """Throughput ratio over MACs ratio: how much of what was saved has become speed."""
        return self.throughput_ratio / self.macs_ratio

    def to_dict(self) -> dict[str, Any]:
        """``{"networks": {name: {...}}, "throughput_ratio", "macs_ratio", "share"}``."""
        ratios = {name: getattr(self, name) for name in ('throughput_ratio', 'macs_ratio', 'share')}
        return {**asdict(self), **ratios}


def compare(
    models: Mapping[str, nn.Module], shape: tuple[int, int], **arguments: Any
) -> Comparison:
    """Counts and times two networks.

    Args:
        models: Two networks by name.
        shape: Height and width of the images in pixels.
        **arguments: For :func:`measure_throughput`: batch size, rounds, amp, compile.

    Raises:
        ValueError: See :func:`measure_throughput`.
    """
    costs = {name: count_complexity(model, shape) for name, model in models.items()}
    channels = num_channels(next(iter(models.values())))
    speeds = measure_throughput(models, (channels, *shape), **arguments)
    return Comparison(
        {name: Speed(cost.params, cost.macs, speeds[name]) for name, cost in costs.items()}
    )


def scatter_inputs(model: nn.Module) -> None:
    """Lets the pruned FFNs read inputs all over the width, as pruning does.

    Built without weights they read the first C', which are next to each other in memory.
    """
    generator = torch.Generator().manual_seed(0)
    for ffn in find_ffns(model):
        if isinstance(ffn.fc1, SlimLinear):
            order = torch.randperm(ffn.width, generator=generator)
            ffn.fc1.inputs.copy_(order[: ffn.sizes['inputs']].sort().values)


# Not inference_mode(): Dynamo fails there on numbers of numpy, such as mmpretrain's drop rates.
@torch.no_grad()
def measure_throughput(
    models: Mapping[str, nn.Module],
    shape: tuple[int, int, int],
    batch_size: int = 64,
    rounds: int = 15,
    amp: bool = False,
    compile: bool = False,
) -> dict[str, float]:
    """Times the networks in turn and takes the median for each.

    In turn, so that whatever else the machine does hits all of them alike. Only the network is
    timed: neither reading images nor what follows the last layer. With one thread on the CPU the
    processor's time counts, which other processes do not take away; else the clock on the wall.

    Args:
        models: Networks by name: mmpretrain classifiers, mmdet detectors or any network that
            takes a batch of images. All on one device. Their training mode is kept.
        shape: Channels, height and width of the images.
        batch_size: Images in a batch. Defaults to 64.
        rounds: Timed passes of each network, after two that are not timed. Defaults to 15.
        amp: Whether to use torch.autocast, float16 on a GPU and bfloat16 on the CPU. Defaults to
            False, float32.
        compile: Whether to use torch.compile, which needs a C++ compiler on the CPU. Defaults to
            False.

    Returns:
        Images per second by name.

    Raises:
        ValueError: ``models`` is empty or its networks are on different devices, or ``rounds``
            or ``batch_size`` is below 1.
    """
    if batch_size < 1 or rounds < 1:
        raise ValueError(f'batch_size is {batch_size} and rounds {rounds}, both must be at least 1')
    devices = {parameter.device for model in models.values() for parameter in model.parameters()}
    if len(devices) != 1:
        names = ', '.join(sorted(str(device) for device in devices)) or 'no device'
        raise ValueError(f'the {len(models)} networks must be on one device, they are on {names}')
    device = devices.pop()
    images = torch.randn(batch_size, *shape, device=device)
    training = {name: model.training for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    try:
        passes = {}
        for name, model in models.items():
            # Not eval(), which returns None for mmpretrain's backbones.
            model.train(False)
            passes[name] = _forward(model, images, compile)
        alone = device.type == 'cpu' and torch.get_num_threads() == 1
        clock = time.thread_time if alone else time.perf_counter
        # To stderr: what the tools print can be piped.
        console = Console(stderr=True)
        for number in track(range(WARM_UP + rounds), 'timing', console=console, transient=True):
            for name, run in passes.items():
                with torch.autocast(device.type, enabled=amp):
                    elapsed = _time_once(run, device, clock)
                if number >= WARM_UP:
                    seconds[name].append(elapsed)
    finally:
        for name, model in models.items():
            model.train(training[name])
    return {name: batch_size / median(times) for name, times in seconds.items()}


def _forward(model: nn.Module, images: torch.Tensor, compile: bool) -> Callable[[], Any]:
    """One pass of the network on ``images``."""
    arguments = tensor_arguments(model, tuple(images.shape[-2:]), len(images))
    run = torch.compile(model) if compile else model
    return lambda: run(images, **arguments)


def _time_once(run: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds for one batch, until the device has finished."""
    _synchronize(device)
    start = clock()
    run()
    _synchronize(device)
    return clock() - start


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
