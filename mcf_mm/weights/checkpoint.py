"""Lets MMEngine read ``.safetensors`` files wherever it reads a checkpoint.

That is in ``load_from`` and ``init_cfg``, once this module is imported. Loading never unpickles;
the files themselves are the business of :mod:`mcf_mm.weights.files`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint
from torch import Tensor, nn

from mcf_mm.weights.files import HEADER, read_header, read_safetensors, save_state_dict

__all__ = [
    'HEADER',
    'check_loaded',
    'dataset_meta',
    'load_from_safetensors',
    'read_header',
    'read_state_dict',
    'readable',
    'save_state_dict',
]


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = 'cpu') -> dict[str, dict]:
    """Reads a safetensors file; MMEngine calls it for such files.

    Returns:
        A checkpoint as MMEngine expects it: the tensors as ``state_dict``, the header as
        ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not in this format, or its indices are not those that
            the header speaks of.
    """
    device = map_location if isinstance(map_location, str) else 'cpu'
    state_dict, header = read_safetensors(filename, device)
    return {'state_dict': state_dict, 'meta': header}


def read_state_dict(filename: str) -> dict[str, Tensor]:
    """The weights of any checkpoint that MMEngine can read, without training state."""
    with readable(filename):
        checkpoint = _load_checkpoint(filename, map_location='cpu', logger='silent')
    return checkpoint.get('state_dict', checkpoint.get('model', checkpoint))


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


def check_loaded(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Refuses a network that did not get all its weights, of which MMEngine only warns.

    Args:
        model: A network after ``load_checkpoint``.
        checkpoint: What was loaded.

    Raises:
        ValueError: A parameter is missing in the checkpoint or has another size there.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    found = {
        key.removeprefix('module.'): tuple(value.shape)
        for key, value in weights.items()
        if isinstance(value, Tensor)
    }
    wrong = [
        f'{name} is {found.get(name, "missing")}, not {tuple(parameter.shape)}'
        for name, parameter in model.named_parameters()
        if found.get(name) != tuple(parameter.shape)
    ]
    if wrong:
        raise ValueError(
            f'the checkpoint is not one of this {type(model).__name__}: {len(wrong)} parameters '
            f'are missing or have another size, the first: {wrong[0]}. Give the config that it '
            'was trained with'
        )


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
