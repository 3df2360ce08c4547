"""Finds the units of a network, and its classifier."""

import inspect

from torch import nn

from mcf_mm.pruning.attention import SlimAttention
from mcf_mm.pruning.layers import SlimLinear
from mcf_mm.pruning.token_units import add_token_units
from mcf_mm.pruning.units import FFN, Attention, Units


def find_units(model: nn.Module) -> Units:
    """Find the units of a network by their parts, so that no library need be imported.

    FFNs are mmcv's ``FFN`` (``layers`` is a Sequential of [Sequential(Linear, activation,
    dropout), Linear, dropout]) and modules with ``fc1`` and ``fc2`` such as those of timm and
    Hugging Face. Attentions have ``qkv`` and ``proj`` (mmpretrain, mmdet's Swin, timm) or
    ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` (Hugging Face). Tokens can be dropped in some
    blocks of a plain vision transformer of mmpretrain or timm of which the class token alone is
    read, and of YOLOS.

    Args:
        model: Any network.

    Returns:
        The units, and the reason for whatever looks like one and is left out.
    """
    units, others = Units(), []
    for name, module in model.named_modules():
        for part in (_ffn, _attention):
            unit, reason = part(name, module)
            if unit is not None:
                units.append(unit)
            elif reason:
                units.left_out[name] = reason
        if name and any(word in type(module).__name__.lower() for word in _WORDS):
            others.append((name, module))
    for name, module in others:
        linears = sum(isinstance(part, nn.Linear) for part in module.modules())
        known = (*units.by_name, *units.left_out)
        if linears >= 2 and not any(_nested(name, other) for other in known):
            units.left_out[name] = (
                f'its class {type(module).__name__}, with {linears} linear layers, is not known'
            )
    add_token_units(model, units)
    return units


#: Parts of the names of classes that are told of when their layout is not known.
_WORDS = ('mlp', 'ffn', 'glu', 'feedforward', 'attention', 'attn', 'msa')


def _nested(name: str, other: str) -> bool:
    """Whether one of two modules is the other or lies in it."""
    return f'{name}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{name}.')


def find_ffns(model: nn.Module) -> list[FFN]:
    """The FFNs of ``model`` in the order of the forward pass, see :func:`find_units`."""
    return find_units(model).ffns


def _ffn(name: str, module: nn.Module) -> tuple[FFN | None, str | None]:
    """The FFN that a module is, or why it is none though it looks like one."""
    for paths in (('layers.0.0', 'layers.1'), ('fc1', 'fc2')):
        try:
            fc1, fc2 = (module.get_submodule(path) for path in paths)
        except AttributeError:
            continue
        if not isinstance(fc1, nn.Linear) or not isinstance(fc2, nn.Linear):
            continue
        width = fc2.out_features
        hidden = fc1.out_features
        in_head = any(part.endswith('head') for part in name.split('.'))
        if in_head and not getattr(module, 'add_identity', True):
            return None, 'it is part of a head, without a residual connection'
        reads = width if isinstance(fc1, SlimLinear) else fc1.in_features
        if hidden != fc2.in_features:
            return None, f'fc1 gives {hidden} channels and fc2 reads {fc2.in_features}: it is gated'
        if reads != width:
            return None, f'it reads {reads} channels and gives {width}'
        between = False
        for path, parameter in module.named_parameters():
            if path.rpartition('.')[0] in paths:
                between = path.startswith(paths[0])
            elif hidden in parameter.shape and (between or hidden != width):
                return None, f'{path} of the hidden width {hidden} lies between its layers'
        return FFN(name, module, *paths), None
    return None, None


def _attention(name: str, module: nn.Module) -> tuple[Attention | None, str | None]:
    """The attention that a module is, or why it is none though it looks like one."""
    if isinstance(module, nn.MultiheadAttention):
        return None, 'nn.MultiheadAttention has query, key and value in one parameter'
    layout = SlimAttention.layout_of(module)
    if layout is None:
        return None, None
    if reason := layout.unsupported(module):
        return None, reason
    forward = type(module).forward
    if not isinstance(module, SlimAttention):
        unknown = set(inspect.signature(forward).parameters) - {'self', *layout.forward_names}
        if unknown:
            return None, f'its forward takes {sorted(unknown)}'
    return Attention(name, module, layout), None


def find_classifier(model: nn.Module) -> nn.Linear | None:
    """The linear layer that turns the class token into class scores, or None.

    It is the last linear layer of ``model.head`` that is named ``head`` or ``fc`` (mmpretrain,
    timm's Swin), ``model.head`` itself (timm's ViT), ``model.classifier`` or
    ``model.cls_classifier`` (Hugging Face). A detector has ``bbox_head`` and therefore none.
    """
    for path in ('classifier', 'cls_classifier'):
        if isinstance(getattr(model, path, None), nn.Linear):
            return getattr(model, path)
    head = getattr(model, 'head', None)
    if isinstance(head, nn.Linear):
        return head
    if not isinstance(head, nn.Module):
        return None
    linears = [
        module
        for name, module in head.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition('.')[2] in ('head', 'fc')
    ]
    classes = getattr(head, 'num_classes', None)
    for linear in reversed(linears):
        if classes is None or linear.out_features == classes:
            return linear
    return None
