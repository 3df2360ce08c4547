"""Checkpoints in MMEngine: no code from a file runs, and what does not fit is an error.

Once this module is imported, MMEngine reads local files and downloads in this way wherever it
reads a checkpoint: ``load_from``, ``resume`` and ``init_cfg``, ``.safetensors`` as well. The files
themselves are the business of :mod:`mcf_mm.weights.files`.
"""

import sys
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint
from torch import Tensor, nn

from mcf_mm.weights.check import check_finite, check_weights, unwrap
from mcf_mm.weights.files import HEADER, read_checkpoint, read_header, save_state_dict
from mcf_mm.weights.swin import modern_swin_names

__all__ = [
    'HEADER',
    'RESIZED',
    'check_loaded',
    'dataset_meta',
    'load_from_http',
    'load_from_local',
    'load_from_safetensors',
    'load_weights',
    'put_weights',
    'read_header',
    'read_state_dict',
    'readable',
    'save_state_dict',
]

#: What OpenMMLab's classes resize while they load it.
RESIZED = ('*pos_embed', '*relative_position_bias_table')


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Reads a checkpoint file; MMEngine calls it for local paths.

    Weights under another key than ``state_dict`` (``model``, ``model_ema`` ...) are put there too.
    The config that old checkpoints have in ``meta`` is left out: to resume, MMEngine would run it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Weights are NaN or infinite, or see
            :func:`mcf_mm.weights.files.read_checkpoint`.
    """
    checkpoint = read_checkpoint(filename, map_location)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    try:
        weights, note = unwrap(checkpoint)
    except ValueError:
        return checkpoint  # no weights, such as the state of an optimizer
    check_finite(weights, str(filename))
    if not any(isinstance(value, Mapping) for value in checkpoint.values()):
        return checkpoint  # some of mmpretrain's models want bare weights as they are
    if note and 'state_dict' not in checkpoint:
        print_log(f'{filename}: {note}', logger='current')
    return {**checkpoint, 'state_dict': weights}


@CheckpointLoader.register_scheme(prefixes=r'(?i).*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Reads a safetensors file; MMEngine calls it for such files.

    Returns:
        A checkpoint as MMEngine expects it: the tensors as ``state_dict``, the header as
        ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not in this format, or its indices are not those that
            the header speaks of.
    """
    return load_from_local(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Downloads a checkpoint, once, and reads it; MMEngine calls it for such addresses.

    Args:
        filename: Address. The file goes to torch's folder for them, where MMEngine has it too.
        map_location: As for :func:`torch.load`.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(filename).path).name
    rank, num_processes = get_dist_info()
    for turn in (rank == 0, rank > 0):
        if turn and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(filename, str(path), progress=sys.stderr.isatty())
        if num_processes > 1:
            barrier()
    return load_from_local(str(path), map_location)


def read_state_dict(filename: str) -> Mapping[str, Tensor]:
    """The weights of any checkpoint that MMEngine can read, without training state.

    Raises:
        ValueError: There are no weights in it, or see :func:`mcf_mm.weights.files.read_checkpoint`.
    """
    return _read(filename)[0]


def load_weights(
    model: nn.Module,
    filename: str | Path,
    *,
    new: Collection[str] = (),
    resized: Collection[str] = RESIZED,
    allow_new_head: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Loads a checkpoint into a network, all of it or with an error.

    Args:
        model: The network; with ``sizes='auto'`` it takes the sizes of the checkpoint.
        filename: Whatever MMEngine can read.
        new: See :func:`mcf_mm.weights.check.check_weights`.
        resized: Weights that the class resizes. Defaults to :data:`RESIZED`.
        allow_new_head: Whether the head may be another. Defaults to False.

    Returns:
        The ``meta`` of the checkpoint, and the weights that start anew.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, weights in it are NaN or infinite, or it does not fit;
            ``model`` is then not to be used.
    """
    weights, meta = _read(str(filename))
    arguments = dict(new=new, resized=resized, allow_new_head=allow_new_head)
    return meta, put_weights(model, weights, str(filename), **arguments)


def put_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    new: Collection[str] = (),
    resized: Collection[str] = RESIZED,
    allow_new_head: bool = False,
) -> list[str]:
    """Put weights that were read already into a network, all of them or with an error.

    Args:
        model: The network; with ``sizes='auto'`` it takes the sizes of the weights.
        weights: State dict.
        source: What to call them in an error.
        new: See :func:`mcf_mm.weights.check.check_weights`.
        resized: Weights that the class resizes. Defaults to :data:`RESIZED`.
        allow_new_head: Whether the head may be another. Defaults to False.

    Returns:
        Names of the weights that start anew.

    Raises:
        ValueError: Weights are NaN or infinite, or do not fit; ``model`` is then not to be used.
    """
    check_finite(weights, source, model)
    weights = _modern(weights)
    arguments = dict(source=source, new=new, resized=resized, allow_new_head=allow_new_head)
    if allow_new_head:
        own = model.state_dict()
        anew = {
            name
            for name, value in weights.items()
            if name.split('.')[0].endswith('head')
            and getattr(own.get(name), 'shape', None) != value.shape
        }
        loaded = _select(weights, weights.keys() - anew)
    else:
        loaded = weights
    try:
        # Whatever `strict` says, torch refuses what has another size after the class resized it.
        model.load_state_dict(loaded, strict=False)
    except (RuntimeError, ValueError) as error:
        known = model.state_dict().keys()
        if isinstance(error, RuntimeError) or 2 * len(known & weights.keys()) < len(known):
            check_weights(model, weights, **{**arguments, 'resized': ()})  # says it in short
        raise ValueError(f'{source}: {error}') from error
    return check_weights(model, weights, **arguments)


def check_loaded(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Checks a network that MMEngine has loaded, which only warns of what does not fit.

    Args:
        model: A network after ``load_checkpoint``.
        checkpoint: What was loaded.

    Raises:
        ValueError: See :func:`mcf_mm.weights.check.check_weights`.
    """
    check_weights(model, _modern(unwrap(checkpoint)[0]))


@contextmanager
def readable(checkpoint: str | Path) -> Iterator[None]:
    """Names the file when what is loaded in the context is no checkpoint at all.

    Raises:
        ValueError: Torch cannot read the file.
    """
    try:
        yield
    except (UnpicklingError, EOFError) as error:
        raise ValueError(
            f'{checkpoint} is not a checkpoint that torch can read ({error}): is it the page '
            'or the pointer of a download?'
        ) from error


def _read(filename: str) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Weights and ``meta`` of any checkpoint that MMEngine can read."""
    with readable(filename):
        checkpoint = _load_checkpoint(filename, map_location='cpu', logger='silent')
    try:
        weights, _ = unwrap(checkpoint)
    except ValueError as error:
        raise ValueError(f'{filename}: {error}') from error
    meta = checkpoint.get('meta')
    return weights, meta if isinstance(meta, dict) else {}


def _modern(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A copy with the names that a Swin Transformer of mmpretrain has today."""
    weights = _select(weights, weights.keys())
    for prefix in ('', 'backbone.'):
        modern_swin_names(weights, prefix)
    return weights


def _select(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """A copy with some of the weights, and the versions of the modules."""
    copy = OrderedDict((name, value) for name, value in weights.items() if name in names)
    if hasattr(weights, '_metadata'):
        copy._metadata = weights._metadata
    return copy


def dataset_meta(cfg: Config, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Class names and palette of the data set that a network was trained on.

    Args:
        cfg: Config of the network.
        meta: The ``meta`` of its checkpoint, where MMEngine notes the data set; converted
            weights say nothing of it.

    Returns:
        ``{'classes': ..., 'palette': ...}`` as far as known, from the checkpoint or else from
        the data set of the config, whose files need not be there.
    """
    if 'dataset_meta' in meta:
        return dict(meta['dataset_meta'])
    for name in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        if cfg.get(name):
            with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
                return dict(DATASETS.build(dict(cfg[name].dataset, lazy_init=True)).metainfo)
    return {}
