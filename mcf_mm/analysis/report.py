"""What a pruning run did, in pictures: as PNG files and in the visualizer's backends."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmengine.logging import print_log
from mmengine.visualization import Visualizer
from torch import Tensor

from mcf_mm.analysis.complexity import Complexity
from mcf_mm.pruning import Sizes, Structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    out_dir: str | Path,
    structure: Structure,
    full: Sizes,
    importance: Mapping[str, Mapping[str, Tensor]],
    before: Complexity,
    after: Complexity,
    visualizer: Visualizer | None = None,
    step: int = 0,
) -> list[Path]:
    """Draw what was kept, why, and what it saves.

    ``kept_sizes.png``, ``kept_inputs.png`` (where inputs were pruned, of one width), ``parts.png``,
    and one ``importance_<unit>.png`` for each unit with scores. A run does not fail for want of
    matplotlib: then the log says what to install, and nothing is drawn.

    Args:
        out_dir: Folder for the pictures, made if need be.
        structure: What was kept.
        full: Sizes of the dense network.
        importance: Scores by unit and kind, ``(count,)``; may be empty.
        before: What the dense network costs.
        after: What the pruned one costs.
        visualizer: Shows the pictures in its backends, such as TensorBoard, as ``mcf_<name>``.
            Defaults to None.
        step: Step of the visualizer. Defaults to 0.

    Returns:
        The pictures that were written.
    """
    plots = plotting()
    if plots is None:
        return []
    inputs = {name: kinds['inputs'] for name, kinds in structure.items() if 'inputs' in kinds}
    figures = overview(plots, full, structure.sizes, inputs, before, after)
    for name, kept in structure.items():
        if name in importance:
            figures[f'importance_{name}'] = plots.importance_figure(name, importance[name], kept)
    return write_figures(plots, figures, out_dir, visualizer, step)


def draw_sizes(
    out_dir: str | Path,
    full: Sizes,
    sizes: Sizes,
    inputs: Mapping[str, Tensor],
    before: Complexity,
    after: Complexity,
) -> list[Path]:
    """Draw the sizes, the inputs and the costs of a finished network.

    Args:
        out_dir: Folder for ``kept_sizes.png``, ``kept_inputs.png`` and ``parts.png``.
        full: Sizes of the dense network.
        sizes: Sizes of the pruned one.
        inputs: Inputs that it keeps, by unit.
        before: What the dense network costs.
        after: What the pruned one costs.

    Returns:
        The pictures that were written.
    """
    plots = plotting()
    if plots is None:
        return []
    figures = overview(plots, full, sizes, inputs, before, after)
    return write_figures(plots, figures, out_dir)


def plotting():
    """The module that draws, None without matplotlib."""
    try:
        from mcf_mm.analysis import plots
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != 'matplotlib':
            raise
        print_log(
            'no pictures of the pruning: matplotlib is missing, pip install matplotlib',
            logger='current',
            level=logging.WARNING,
        )
        return None
    return plots


def overview(
    plots,
    full: Sizes,
    sizes: Sizes,
    inputs: Mapping[str, Tensor],
    before: Complexity,
    after: Complexity,
) -> dict[str, 'Figure']:
    """The pictures of the whole network: all its units, so that their numbers are those of layers.

    Kinds of which nothing was pruned are not drawn, unless nothing was pruned at all.
    """
    sizes = {name: {**own, **sizes.get(name, {})} for name, own in full.items()}
    changed = {kind for name, own in sizes.items() for kind in own if own[kind] != full[name][kind]}
    shown = {
        name: {kind: size for kind, size in own.items() if kind in changed or not changed}
        for name, own in sizes.items()
    }
    figures = {
        'kept_sizes': plots.kept_sizes_figure({n: own for n, own in shown.items() if own}, full),
        'parts': plots.parts_figure(before, after),
    }
    widths = {name: own['inputs'] for name, own in full.items() if 'inputs' in own}
    if 'inputs' in changed and len(set(widths.values())) == 1:
        reads = {name: inputs.get(name, torch.arange(width)) for name, width in widths.items()}
        figures['kept_inputs'] = plots.kept_inputs_figure(reads, max(widths.values()))
    return figures


def write_figures(
    plots,
    figures: Mapping[str, 'Figure'],
    out_dir: str | Path,
    visualizer: Visualizer | None = None,
    step: int = 0,
) -> list[Path]:
    paths = []
    for name, figure in figures.items():
        path = Path(out_dir) / f'{name}.png'
        plots.save_figure(figure, path)
        paths.append(path)
        if visualizer is not None:
            # No slash: MMEngine's LocalVisBackend makes a file name of it.
            visualizer.add_image(f'mcf_{name}', plots.figure_pixels(figure), step)
    return paths
