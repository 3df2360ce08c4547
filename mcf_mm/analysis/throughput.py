"""Images per second of two networks, measured side by side."""

import time
from collections.abc import Mapping
from statistics import median

import torch
from torch import nn


@torch.inference_mode()
def measure_throughput(
    models: Mapping[str, nn.Module],
    shape: tuple[int, int, int],
    batch_size: int = 64,
    rounds: int = 15,
) -> dict[str, float]:
    """Times the networks in turn and takes the median for each.

    In turn, so that whatever else the machine does hits all of them alike. Only the network is
    timed: neither reading images nor what follows the last layer.

    Args:
        models: Networks by name: mmpretrain classifiers, mmdet detectors or any network that
            takes a batch of images. All on one device. Their training mode is kept.
        shape: Channels, height and width of the images.
        batch_size: Images in a batch. Defaults to 64.
        rounds: Timed passes of each network, after two that are not timed. Defaults to 15.

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
        for model in models.values():
            # Not eval(), which returns None for mmpretrain's backbones.
            model.train(False)
        for number in range(2 + rounds):
            for name, model in models.items():
                elapsed = _time_once(model, images, device)
                if number >= 2:
                    seconds[name].append(elapsed)
    finally:
        for name, model in models.items():
            model.train(training[name])
    return {name: batch_size / median(times) for name, times in seconds.items()}


def _time_once(model: nn.Module, images: torch.Tensor, device: torch.device) -> float:
    """Seconds for one batch, until the device has finished."""
    _synchronize(device)
    start = time.perf_counter()
    model(images)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
