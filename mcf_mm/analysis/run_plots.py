"""Pictures of a whole run: importance and cost curves of all layers, and how it trained."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mcf_mm.analysis.record import KINDS
from mcf_mm.analysis.training_log import TrainingLog
from mcf_mm.pruning import Sizes

#: Losses below this are rounding, and not drawn on a logarithmic axis, in nats.
LEAST = 1e-6


def ranked_importance_figure(importance: Mapping[str, Mapping[str, Mapping]]) -> Figure:
    """Draw the importance of the elements of all units by rank, a dot at the last that stays.

    Args:
        importance: As :class:`mcf_mm.analysis.record.Record` has it.

    Raises:
        ValueError: It is empty.
    """
    panels = _panels(importance)
    for axes, kind, units in panels:
        for name, colour in units.items():
            own = importance[name][kind]
            shares = own['shares']
            ranks = [i / max(1, len(shares) - 1) for i in range(len(shares))]
            axes.plot(ranks, shares, color=colour, linewidth=1.2)
            if own['kept'] < own['count']:
                last = (own['kept'] - 1) / max(1, own['count'] - 1)
                value = np.interp(last, ranks, shares)
                axes.plot([last], [value], 'o', color=colour, markersize=4)
        if all(min(importance[name][kind]['shares']) > 0 for name in units):
            axes.set_yscale('log')
        # The channels of all heads are ranked together.
        axes.set_title(KINDS[kind].removesuffix(' of a head'))
        axes.set_xlabel('rank, as a share')
    panels[0][0].set_ylabel('score, as a share of the largest')
    return panels[0][0].figure


def curves_figure(curves: Mapping[str, Mapping[str, list]], sizes: Sizes, full: Sizes) -> Figure:
    """Draw the loss by the share of elements that go, a dot where each unit was cut.

    Args:
        curves: Pairs by unit and kind, as :class:`mcf_mm.analysis.record.Record` has them.
        sizes: Sizes of the pruned units.
        full: Sizes of the dense network.

    Raises:
        ValueError: ``curves`` is empty.
    """
    panels = _panels(curves)
    for axes, kind, units in panels:
        for name, colour in units.items():
            points = [(share, loss) for share, loss in curves[name][kind] if loss >= LEAST]
            axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, lw=1.2)
            kept, dense = sizes.get(name, {}).get(kind), full.get(name, {}).get(kind)
            if points and kept is not None and dense and kept < dense:
                share, loss = min(points, key=lambda point: abs(point[0] - 1 + kept / dense))
                axes.plot([share], [loss], 'o', color=colour, markersize=4)
        axes.set_yscale('log')
        axes.set_title(KINDS[kind].removesuffix(' of a head'))
        axes.set_xlabel('share that goes')
    panels[0][0].set_ylabel('loss (nats)')
    return panels[0][0].figure


def training_figure(log: TrainingLog) -> Figure:
    """Draw the loss of a run by iteration and its validation by epoch, surgery as a line."""
    figure = Figure(figsize=(11 if log.metrics else 6, 3.2), layout='constrained')
    grid = figure.subplots(1, 2 if log.metrics else 1, squeeze=False)[0]
    marker = 'o' if len(log.loss) < 2 else None
    grid[0].plot(*zip(*log.loss, strict=True), color='tab:blue', linewidth=1.2, marker=marker)
    grid[0].set_title('training loss')
    grid[0].set_xlabel('iteration')
    if log.metrics:
        for name, points in log.metrics.items():
            grid[1].plot(*zip(*points, strict=True), label=name, marker='o', markersize=3)
        if log.surgery:  # at 0 there is nothing before it
            # Validations before it are of the dense network, those after it of the small one.
            grid[1].axvline(log.surgery + 0.5, color='0.5', linestyle=':', label='surgery')
        grid[1].set_title('validation')
        grid[1].set_xlabel('epoch')
        grid[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[1].legend()
    return figure


def _panels(lines: Mapping[str, Mapping]) -> list[tuple[Axes, str, dict[str, tuple]]]:
    """One panel for each kind, with the colour of each unit in it: dark to light by depth."""
    names = {kind: [name for name in lines if kind in lines[name]] for kind in KINDS}
    names = {kind: own for kind, own in names.items() if own}
    if not names:
        raise ValueError('there is no unit to draw')
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.7 * columns, 2.9 * rows), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(names) :]:
        axes.remove()
    return [
        (axes, kind, {name: _colour(i, len(own)) for i, name in enumerate(own)})
        for axes, (kind, own) in zip(grid, names.items(), strict=False)
    ]


def _colour(number: int, count: int) -> tuple:
    """Middle of the map: its ends would be lost on dark or on white paper."""
    return colormaps['viridis'](0.25 + 0.55 * number / max(1, count - 1))
