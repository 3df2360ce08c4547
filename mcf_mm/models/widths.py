"""Do the neck and the heads of a config take what its slim backbone gives?"""

from collections.abc import Mapping

from torch import nn

from mcf_mm.models.slim import SlimUnits


def check_widths(model: nn.Module, config: Mapping) -> None:
    """Refuse a network whose neck or head was made for another backbone.

    Without it, torch would say so at the first image, naming neither. Only the backbone knows its
    widths and only the config has ``in_channels`` of every neck, so both are looked at.

    Args:
        model: Classifier or detector. One without a slim backbone is not looked at.
        config: What it was built from, ``cfg.model``.

    Raises:
        ValueError: ``in_channels`` of the neck, or of a head if no neck has them, are not the
            widths of the backbone.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, SlimUnits):
        return
    widths = backbone.out_channels
    necks = config.get('neck') or []
    if not isinstance(necks, list | tuple):
        necks = [necks]
    # Of several necks the first sees the backbone; one without widths pools and leaves the
    # channels alone.
    neck = next((neck for neck in necks if 'in_channels' in neck), None)
    parts = {'neck': neck}
    if neck is None:
        parts = {name: part for name, part in config.items() if name.endswith('head') and part}
    for name, part in parts.items():
        expected = part.get('in_channels')
        if expected is None:
            continue
        # A number is the width of the last map. Some necks take the maps in reverse order.
        one = isinstance(expected, int)
        given = widths[-1] if one else widths
        if expected != given if one else sorted(expected) != sorted(given):
            raise ValueError(
                f'{name} ({part["type"]}) has in_channels={expected}, but the maps of the backbone '
                f'({type(backbone).__name__}) are {widths} channels wide: set {name}.in_channels='
                f'{given} in the config'
            )
