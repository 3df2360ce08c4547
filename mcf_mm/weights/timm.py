"""Slim networks in timm, for people without OpenMMLab: torch, timm and safetensors are enough."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.pruning.targets import find_ffns
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
    sizes = _sizes(weights, model)
    _check(weights, model, sizes)
    for ffn in find_ffns(model):
        resize_ffn(ffn, *sizes[ffn.name])
    model.load_state_dict(weights)
    return model


def _sizes(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and hidden units of each FFN of ``model``, as far as the weights have it."""
    sizes = {}
    for ffn in find_ffns(model):
        weight = weights.get(f'{ffn.name}.{ffn.fc1_path}.weight')
        sizes[ffn.name] = ffn.sizes if weight is None else tuple(weight.shape[::-1])
    return sizes


def _check(
    weights: Mapping[str, Tensor], model: nn.Module, sizes: Mapping[str, tuple[int, int]]
) -> None:
    """Refuses weights that do not fit, before the model is changed."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for ffn in find_ffns(model):
        inputs, hiddens = sizes[ffn.name]
        fc1, fc2 = (f'{ffn.name}.{path}' for path in (ffn.fc1_path, ffn.fc2_path))
        expected[f'{fc1}.weight'], expected[f'{fc2}.weight'] = (
            (hiddens, inputs),
            (ffn.width, hiddens),
        )
        if f'{fc1}.bias' in expected:
            expected[f'{fc1}.bias'] = (hiddens,)
        expected.pop(f'{fc1}.inputs', None)
        if inputs < ffn.width:
            expected[f'{fc1}.inputs'] = (inputs,)
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        told = [
            f'{key} {found.get(key, "missing")}, not {expected.get(key, "there")}' for key in wrong
        ]
        raise ValueError(
            f'{len(wrong)} weights do not fit the {type(model).__name__}: {"; ".join(told[:3])}. '
            'Name the model of the same width, depth, patch and image size (img_size=...)'
        )
