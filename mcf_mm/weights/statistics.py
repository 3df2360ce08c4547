"""Keeps what the closed form has seen in files, so that further budgets need no images."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mcf_mm.files import whole_file
from mcf_mm.pruning import Seen
from mcf_mm.pruning.curves import Curves, read_curves
from mcf_mm.pruning.moments import MomentObserver, Moments
from mcf_mm.pruning.pairs import PairObserver, Pairs
from mcf_mm.weights.files import read_safetensors, save_state_dict

_CLASSES = {MomentObserver.__name__: Moments, PairObserver.__name__: Pairs}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of all parameters."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        digest.update(f'{name} {tuple(value.shape)} '.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def statistics_path(curves: str | Path) -> Path:
    """The file of moments that lies beside a file of cost curves."""
    return Path(curves).with_suffix('.safetensors')


def write_statistics(path: str | Path, curves: Curves, seen: Seen, network: str) -> None:
    """Write cost curves to a JSON file and the moments to a ``.safetensors`` file beside it.

    Args:
        path: The JSON file.
        curves: Of the dense network.
        seen: With the moments of the dense network, not turned.
        network: :func:`fingerprint` of the dense network.
    """
    tensors, facts = {}, {}
    for (observer, unit, kind), result in seen.results.items():
        if observer in _CLASSES:
            key = f'{observer}|{unit}|{kind}'
            if isinstance(result, Moments):
                facts[key] = dict(tokens=result.tokens, ridge=result.ridge)
            for field, value in vars(result).items():
                if isinstance(value, Tensor):
                    tensors[f'{key}|{field}'] = value.float()  # observers have rounded it
    save_state_dict(statistics_path(path), tensors, {'network': network, 'moments': facts})
    with whole_file(path) as partial:
        told = Curves(curves.loss, {**curves.facts, 'network': network}, curves.tokens)
        partial.write_text(told.to_json(), encoding='utf-8')


def read_statistics(path: str | Path, model: nn.Module) -> tuple[Curves, Seen]:
    """Read what :func:`write_statistics` wrote.

    Args:
        path: The JSON file.
        model: The dense network.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: A file is damaged, or of other weights than those of ``model``.
    """
    curves = read_curves(path)
    moments = statistics_path(path)
    tensors, header = read_safetensors(moments)
    network = fingerprint(model)
    for file, own in ((path, curves.facts.get('network')), (moments, header.get('network'))):
        if own != network:
            raise ValueError(
                f'{file} is of other weights: it was made of a network {str(own)[:12]}..., this '
                f'one is {network[:12]}...; name a new file, or the checkpoint it was made of'
            )
    device = next(model.parameters()).device
    parts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key, value in tensors.items():
        observer, unit, kind, field = key.split('|')
        parts.setdefault((observer, unit, kind), {})[field] = value.to(device).double()
    for key, own in parts.items():
        if key[0] == MomentObserver.__name__:
            own.setdefault('metric', None)
            own |= header['moments']['|'.join(key)]
    return curves, Seen({key: _CLASSES[key[0]](**own) for key, own in parts.items()})
