"""Slim networks in timm, for people without OpenMMLab: torch, timm and safetensors are enough."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.surgery import resize
from mcf_mm.pruning.token_units import Tokens
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN
from mcf_mm.weights.check import check_weights
from mcf_mm.weights.convert import convert_state_dict
from mcf_mm.weights.files import read_weights
from mcf_mm.weights.names import recognise
from mcf_mm.weights.sizes import TOKENS, sizes_in


def to_timm(
    checkpoint: str | Path | Mapping[str, Tensor], model: str | nn.Module, **kwargs: Any
) -> nn.Module:
    """Load a slim (or dense) network into timm's ViT, DeiT or Swin.

    FFNs and attentions of the model get the sizes of the weights. A layer that reads some of its
    inputs becomes a :class:`mcf_mm.pruning.SlimLinear`, a pruned attention gets a class of
    :mod:`mcf_mm.pruning.attention`; all else is timm's own.

    Args:
        checkpoint: ``slim.safetensors`` or another file that
            :func:`mcf_mm.weights.files.read_weights` reads, or a state dict; in the names of any
            library that :mod:`mcf_mm.weights.names` knows.
        model: Name of timm's model, such as ``'deit_small_patch16_224'``, or the model itself,
            which is changed in place.
        **kwargs: For ``timm.create_model``, with a name only. ``num_classes`` is that of the
            weights by default, ``img_size`` that of the name.

    Returns:
        The model with the weights, as timm leaves it in training mode; call ``eval()``.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``kwargs`` are given together with a model.
        ValueError: The weights are not of a ViT, DeiT or Swin, or do not fit the model.

    Example:
        >>> model = to_timm('work_dirs/pruned/slim.safetensors', 'deit_small_patch16_224').eval()
    """
    weights = checkpoint if isinstance(checkpoint, Mapping) else read_weights(checkpoint)
    if recognise(weights)[1].library != 'timm':
        weights = convert_state_dict(weights, 'timm')
    if isinstance(model, str):
        classifier = weights.get('head.weight', weights.get('head.fc.weight'))
        kwargs.setdefault('num_classes', 0 if classifier is None else len(classifier))
        model = timm.create_model(model, **kwargs)
    elif kwargs:
        raise TypeError(f'{sorted(kwargs)} can be given with the name of a model only')
    # A copy first, so that weights that do not fit leave the model as it is.
    check_weights(_resized(copy.deepcopy(model), weights), weights, source='the checkpoint')
    _resized(model, weights).load_state_dict(weights, strict=False)
    return model


def _resized(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The same model with units of the sizes of the weights."""
    units = [unit for unit in find_units(model).every if _tells_sizes(weights, unit)]
    sizes = sizes_in(weights, units, source='the weights')
    for unit in units:
        resize(unit, sizes[unit.name])
    return model


def _tells_sizes(weights: Mapping[str, Tensor], unit: Unit) -> bool:
    """Whether a unit may have another size than that of the model."""
    if isinstance(unit, FFN):
        paths = (unit.fc1_path, unit.fc2_path)
        return all(f'{unit.name}.{path}.weight' in weights for path in paths)
    if isinstance(unit, Tokens):
        return f'{unit.attention.name}.{TOKENS}' in weights
    return f'{unit.name}.sizes' in weights
