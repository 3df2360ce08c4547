"""Lets MMEngine read ``.safetensors`` files wherever it reads a checkpoint.

That is in ``load_from`` and ``init_cfg``, once this module is imported. Loading never unpickles;
the files themselves are the business of :mod:`mcf_mm.files`.
"""

from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint
from torch import Tensor

from mcf_mm.files import HEADER, read_header, read_safetensors, save_state_dict

__all__ = ['HEADER', 'load_from_safetensors', 'read_header', 'read_state_dict', 'save_state_dict']


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
    checkpoint = _load_checkpoint(filename, map_location='cpu', logger='silent')
    return checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
