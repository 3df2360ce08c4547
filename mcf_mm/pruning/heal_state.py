"""The state of a healing that was interrupted, in a file from which it goes on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcf_mm.files import whole_file

_ADVICE = 'heal with the settings and weights of that file, or delete it to start anew'


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state; the file appears whole or not at all.

    Args:
        path: File to write.
        state: ``settings`` (plain values by name), ``start`` (:func:`fingerprint` of the networks),
            and whatever else is needed to go on, of tensors and plain values.
    """
    with whole_file(path) as partial:
        torch.save(dict(state), partial)


def read_state(
    path: str | Path, settings: Mapping[str, Any], start: str | None = None
) -> dict[str, Any] | None:
    """Read a state, after a check that it is one of the same healing.

    Args:
        path: The file.
        settings: Settings now.
        start: Fingerprint of the networks now. Defaults to None: it is not checked.

    Returns:
        The state with its tensors on the CPU; None where there is no file.

    Raises:
        ValueError: The file is damaged, or is of other settings or weights.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        there, began = state['settings'], state['start']
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise ValueError(
            f'{path} is damaged or no state of a healing ({reason}): delete it to start anew'
        ) from error
    told = [
        f'{name} is {settings.get(name)!r} here and {there.get(name)!r} there'
        for name in {**settings, **there}
        if settings.get(name) != there.get(name)
    ]
    if told:
        raise ValueError(
            f'{path} is of a healing with other settings: {"; ".join(told)}: {_ADVICE}'
        )
    if start is not None and start != began:
        raise ValueError(
            f'{path} is of a healing that began with other weights, of the pruned or of the dense '
            f'network: {_ADVICE}'
        )
    return state


def fingerprint(*models: nn.Module) -> str:
    """Hash of all weights and buffers of some networks, with their names and shapes."""
    total = hashlib.sha256()
    for model in models:
        for name, value in model.state_dict().items():
            value = value.detach().cpu().contiguous()
            total.update(f'{name} {tuple(value.shape)} {value.dtype}\n'.encode())
            total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
