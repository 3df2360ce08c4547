"""Do the anchors, points and RoI extractors of a detector fit the maps that its neck gives?"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mcf_mm.models.slim import SlimUnits
from mcf_mm.registry import split_type

#: What a detector takes its maps from; their strides are found by looking at the maps.
SOURCES = ('backbone', 'neck')
#: Heads whose priors lie on the maps, and RoI extractors that read them. Others, such as the
#: semantic extractor of HTC, read maps of their own.
HEADS = ('bbox_head', 'rpn_head')
EXTRACTORS = ('bbox_roi_extractor', 'mask_roi_extractor')


def check_strides(model: nn.Module, config: Mapping) -> None:
    """Refuse a detector whose heads expect other strides than its maps have.

    Without it, such a detector would train in silence: its anchors would lie elsewhere than the
    features that are to describe them. The true strides are found by looking: one image without
    values passes through a copy of backbone and neck, so nothing in ``model`` changes.

    A head must have one stride for each map. A RoI extractor may read the first maps alone.

    Args:
        model: Detector. One without a part of this package is not looked at, nor is a network
            without strides: a classifier, YOLOS, DETR.
        config: What it was built from, ``cfg.model``.

    Raises:
        ValueError: The strides or the number of levels of a head or RoI extractor are not those of
            the maps, or the neck refuses the maps of the backbone.
    """
    if not _is_ours(model, config):
        return
    expected = _expected(model, config)
    if not expected:
        return
    # Four cells of the coarsest level, so that a wrong stride is seen in each.
    largest = max(max(strides) for strides, *_ in expected.values())
    side = 4 * max(32, int(largest))
    sides = _map_sides(model, side)
    if sides is None:
        return
    given = [_plain(side / own) for own in sides]
    source = next(name for name in reversed(SOURCES) if getattr(model, name, None) is not None)
    for name, (strides, some, argument) in expected.items():
        number = len(strides) if some else len(sides)
        # A map may end with a part of a cell, or without it.
        fits = len(strides) == number <= len(sides) and all(
            abs(own * stride - side) < stride for own, stride in zip(sides, strides, strict=False)
        )
        if not fits:
            wanted = given[:number]
            raise ValueError(
                f'{name} has strides {strides}, but the {source} '
                f'({type(getattr(model, source)).__name__}) gives {len(given)} maps of strides '
                f'{given}: set {argument}={wanted} in the config, or change the levels of the '
                f'{source}'
            )


def _is_ours(model: nn.Module, config: Mapping) -> bool:
    """Whether a detector has a slim backbone, by its class or by ``mcf_mm.SlimModel``."""
    if getattr(model, 'backbone', None) is None:
        return False
    types = [part.get('type') for part in (config, config.get('backbone') or {})]
    return isinstance(model.backbone, SlimUnits) or any(
        kind is not None and split_type(kind)[1] in ('SlimModel', 'slim_model') for kind in types
    )


def _expected(model: nn.Module, config: Mapping) -> dict[str, tuple[list, bool, str]]:
    """Strides by part, whether it may read the first maps alone, and what sets them."""
    expected = {}
    for name in HEADS:
        head = getattr(model, name, None)
        strides = getattr(getattr(head, 'prior_generator', None), 'strides', None)
        if strides is None:
            continue
        part = config.get(name) or {}
        # Libraries call it one or the other; what the config leaves out has FCOS's name.
        generators = [key for key in ('anchor_generator', 'prior_generator') if key in part]
        argument = f'{generators[0]}.strides' if generators else 'strides'
        argument = 'point_strides' if 'point_strides' in part else argument  # RepPoints
        expected[f'{name} ({type(head).__name__})'] = (
            [_one(stride) for stride in strides],
            False,
            f'{name}.{argument}',
        )
    for name in EXTRACTORS:
        extractors = getattr(getattr(model, 'roi_head', None), name, None)
        # A cascade has one for each stage.
        several = isinstance(extractors, nn.ModuleList)
        for stage, extractor in enumerate(extractors if several else [extractors]):
            strides = getattr(extractor, 'featmap_strides', None)
            if strides is not None:
                argument = f'roi_head.{name}.featmap_strides'
                place = f'roi_head.{name}' + (f'[{stage}]' if several else '')
                expected[f'{place} ({type(extractor).__name__})'] = (
                    [_one(stride) for stride in strides],
                    True,
                    argument,
                )
    return expected


def _map_sides(model: nn.Module, side: int) -> list[int] | None:
    """Heights of the maps for a square image, or None where that cannot be told."""
    own = [part for name in SOURCES if (part := getattr(model, name, None)) is not None]
    # On shapes alone; an operator without a formula for shapes runs for real.
    for device in ('meta', 'cpu'):
        parts = nn.ModuleList(copy.deepcopy(own)).to(device)
        # Not eval(), which returns None for mmpretrain's backbones.
        parts.train(False)
        maps: Any = torch.zeros(1, _num_channels(parts), side, side, device=device)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                for part in parts:
                    maps = part(maps)
        except (RuntimeError, AssertionError) as caught:
            error = caught
            continue
        maps = [maps] if isinstance(maps, torch.Tensor) else maps
        return [level.shape[2] for level in maps]
    print_log(
        f'the strides of the maps are not checked: {type(model.backbone).__name__} does not take '
        f'an image of {side} x {side} px ({error})',
        logger='current',
        level=logging.WARNING,
    )
    return None


def _num_channels(parts: nn.Module) -> int:
    first = next((part for part in parts.modules() if isinstance(part, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _one(stride: int | Sequence[int]) -> int | float:
    """A stride as one number; generators keep one for each direction."""
    return stride[1] if isinstance(stride, Sequence) else stride


def _plain(stride: float) -> int | float:
    return int(stride) if stride == int(stride) else round(stride, 2)
