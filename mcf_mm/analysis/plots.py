"""Pictures of what pruning does: sizes, inputs and importance, costs, detections side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.structures import InstanceData
from torch import Tensor

from mcf_mm.analysis.complexity import Complexity
from mcf_mm.analysis.record import KINDS
from mcf_mm.files import whole_file
from mcf_mm.pruning import FFN, Attention, Sizes
from mcf_mm.pruning.token_units import Tokens

if TYPE_CHECKING:  # a pruned classifier needs no mmdet
    from mmdet.structures import DetDataSample


def plot_kept_sizes(path: str | Path, sizes: Sizes, full: Sizes) -> None:
    """Write :func:`kept_sizes_figure` as a picture; the ending of ``path`` decides the format."""
    save_figure(kept_sizes_figure(sizes, full), path)


def kept_sizes_figure(sizes: Sizes, full: Sizes) -> Figure:
    """Draw how many elements of each kind stay, as bars: FFNs in one row, attentions in another.

    Args:
        sizes: Sizes of the pruned units, ``{unit: {kind: n}}``, first layer first.
        full: Sizes of the dense network.

    Raises:
        ValueError: ``sizes`` is empty.
    """
    if not sizes:
        raise ValueError('sizes is empty: there is nothing to draw')
    names = {kind: [name for name in sizes if kind in sizes[name]] for kind in KINDS}
    kinds = FFN.kinds, Attention.kinds, Tokens.kinds
    rows = [[kind for kind in row if names[kind]] for row in kinds]
    rows = [row for row in rows if row]
    columns = max(len(row) for row in rows)
    most = max(len(own) for own in names.values())
    column_width = max(3.0, 0.32 * most + 0.8)
    size = (columns * column_width + 0.8, 2.8 * len(rows) + 0.4)
    figure = Figure(figsize=size, layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, places in zip(rows, grid, strict=True):
        for axes in places[len(row) :]:
            axes.remove()
        for axes, kind in zip(places, row, strict=False):
            kept = [sizes[name][kind] for name in names[kind]]
            dense = [full[name][kind] for name in names[kind]]
            axes.bar(range(len(kept)), dense, color='0.88', label='dense')
            bars = axes.bar(range(len(kept)), kept, color='tab:blue', label='kept')
            # Numbers of four digits are as wide as a bar: side by side they would touch.
            upright = len(kept) > 8 and max(kept) > 999
            axes.bar_label(bars, fontsize='small', rotation=90 * upright, padding=2 * upright)
            axes.set_title(KINDS[kind])
            axes.set_xlabel('layer')
            axes.set_xticks(range(len(kept)))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper')
    return figure


def kept_inputs_figure(inputs: Mapping[str, Tensor], width: int) -> Figure:
    """Draws which channels each feed-forward network reads: one row each, dark where it reads.

    Args:
        inputs: Indices of the inputs, ``(C',)``, by name of the network, first layer first.
        width: C, the number of channels.
    """
    reads = np.zeros((len(inputs), width), dtype=bool)
    for row, index in zip(reads, inputs.values(), strict=True):
        row[index.cpu().numpy()] = True
    figure = Figure(figsize=(8, 0.22 * len(inputs) + 1.2), layout='constrained')
    axes = figure.subplots()
    axes.imshow(reads, aspect='auto', cmap='Blues', vmin=0, vmax=1, interpolation='nearest')
    axes.set_title('inputs that each layer reads')
    axes.set_xlabel('channel')
    axes.set_ylabel('layer')
    axes.set_yticks(range(len(inputs)))
    return figure


def importance_figure(
    name: str, scores: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> Figure:
    """Draw the importance of each element of a unit, by rank: dark where it is kept.

    Args:
        name: The unit, for the title.
        scores: Importance by kind, ``(count,)``.
        kept: Indices of what stays, by kind.
    """
    figure = Figure(figsize=(4.5 * len(scores), 3.4), layout='constrained')
    figure.suptitle(f'importance in {name}')
    columns = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, (kind, values) in zip(columns, scores.items(), strict=True):
        values = values.detach().double().cpu()
        stays = torch.zeros(len(values), dtype=torch.bool)
        stays[kept[kind].cpu() if kind in kept else slice(None)] = True
        order = values.argsort(descending=True)
        ranks = torch.arange(len(values))
        for flag, colour, label in ((True, 'tab:blue', 'kept'), (False, '0.7', 'dropped')):
            chosen = stays[order] == flag
            size = 4 if len(values) > 64 else 20
            axes.scatter(ranks[chosen], values[order][chosen], s=size, color=colour, label=label)
        # The channels of all heads are ranked together.
        title = KINDS[kind].removesuffix(' of a head')
        axes.set_title(f'{title}: {int(stays.sum())} of {len(values)} kept')
        axes.set_xlabel('rank')
        axes.set_ylabel('score')
        axes.legend()
    return figure


def parts_figure(before: Complexity, after: Complexity) -> Figure:
    """Draws parameters and MACs by part of the network, dense and pruned, as bars.

    Args:
        before: What the dense network costs.
        after: What the pruned one costs.
    """
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    columns = zip(
        figure.subplots(1, 2), ('params', 'macs'), ('parameters (M)', 'MACs (G)'), strict=True
    )
    for axes, key, title in columns:
        unit = 1e6 if key == 'params' else 1e9
        for shift, (label, cost) in enumerate(dict(dense=before, pruned=after).items()):
            values = [getattr(part, key) / unit for part in cost.parts.values()]
            total = getattr(cost, key) / unit
            bars = axes.bar(
                [number + 0.4 * shift - 0.2 for number in range(len(values))],
                values,
                width=0.4,
                color=('0.75', 'tab:blue')[shift],
                label=f'{label}, {total:.3g} in all',
            )
            # Next to nothing needs no number, and labels of neighbours would overlap.
            labels = [f'{value:.3g}' if value > 0.01 * total else '' for value in values]
            axes.bar_label(bars, labels, fontsize='x-small')
        axes.set_xticks(range(len(cost.parts)), list(cost.parts), rotation=20)
        axes.set_title(title)
        axes.legend()
    return figure


def plot_detections(
    path: str | Path,
    images: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence['DetDataSample']],
    classes: Sequence[str],
    score_threshold: float = 0.5,
) -> None:
    """Draws what several detectors find in the same images, one row each, truth on top.

    Args:
        path: Picture to write; its ending decides the format.
        images: RGB images, ``(H, W, 3)``, uint8.
        predictions: For each detector one data sample per image, with ``gt_instances`` and
            ``pred_instances`` in pixels of the image.
        classes: Names of the classes.
        score_threshold: Least score of a box that is drawn. Defaults to 0.5.

    Raises:
        ValueError: There is no image, no detector, or not one data sample for each image.
    """
    counts = {name: len(samples) for name, samples in predictions.items()}
    if not images or not counts or set(counts.values()) != {len(images)}:
        raise ValueError(f'need one data sample for each of {len(images)} images, got {counts}')
    first = next(iter(predictions.values()))
    rows = {'truth': (first, True), **{name: (s, False) for name, s in predictions.items()}}
    figure = Figure(figsize=(1.7 * len(images) + 0.4, 1.8 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    for axes, (name, (samples, truth)) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name)
        for ax, image, sample in zip(axes, images, samples, strict=True):
            instances = sample.gt_instances if truth else sample.pred_instances
            if not truth:
                instances = instances[instances.scores >= score_threshold]
            _draw_instances(ax, image, instances.detach().cpu(), classes)
    save_figure(figure, path)


def _draw_instances(
    axes: Axes, image: np.ndarray, instances: InstanceData, classes: Sequence[str]
) -> None:
    """One image with boxes; matplotlib's stay sharp on images of any size, mmdet's do not."""
    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    height, width = image.shape[:2]
    limits = (width, height, width, height)
    scores = instances.get('scores', [None] * len(instances))
    for box, label, score in zip(instances.bboxes.tolist(), instances.labels, scores, strict=True):
        # Pixel i reaches from i - 0.5 to i + 0.5 in a picture.
        x1, y1, x2, y2 = (
            min(max(value, 0.0), limit) - 0.5 for value, limit in zip(box, limits, strict=True)
        )
        colour = colormaps['hsv'](int(label) / len(classes))
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour))
        text = classes[int(label)] + ('' if score is None else f' {float(score):.2f}')
        style = dict(facecolor='black', edgecolor='none', alpha=0.6, pad=0.8)
        axes.text(x1 + 1, y1 + 1, text, color=colour, va='top', fontsize='small', bbox=style)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a picture; the file appears whole or not at all."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120)


def figure_pixels(figure: Figure) -> np.ndarray:
    """The picture as pixels, RGB ``(H, W, 3)``, uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
