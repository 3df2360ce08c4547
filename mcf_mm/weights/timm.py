"""Slim networks in timm, for people without OpenMMLab: torch, timm and safetensors are enough."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.pruning.targets import find_ffns
from mcf_mm.weights.check import check_weights
from mcf_mm.weights.convert import convert_state_dict
from mcf_mm.weights.files import read_weights
from mcf_mm.weights.names import recognise


def to_timm(
    checkpoint: str | Path | Mapping[str, Tensor], model: str | nn.Module, **kwargs: Any
) -> nn.Module:
    """Loads a slim (or dense) network into timm's ViT, DeiT or Swin.

    The FFNs of the model get the sizes of the weights, and a layer that reads some of its inputs
    becomes a :class:`mcf_mm.pruning.SlimLinear`; all else is timm's own.

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
    # A copy, so that what does not fit leaves the model as it is.
    check_weights(_resized(copy.deepcopy(model), weights), weights)
    _resized(model, weights).load_state_dict(weights, strict=False)
    return model


def _resized(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The same model, with FFNs of the sizes of the weights."""
    sizes = _sizes(weights, model)
    for ffn in find_ffns(model):
        resize_ffn(ffn, *sizes[ffn.name])
    return model


def _sizes(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and hidden units of each FFN of ``model``, as far as the weights have it."""
    sizes = {}
    for ffn in find_ffns(model):
        weight = weights.get(f'{ffn.name}.{ffn.fc1_path}.weight')
        sizes[ffn.name] = ffn.sizes if weight is None else tuple(weight.shape[::-1])
    return sizes
