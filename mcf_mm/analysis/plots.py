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
from mcf_mm.pruning import Kept
from mcf_mm.weights.files import whole_file

if TYPE_CHECKING:  # a pruned classifier needs no mmdet
    from mmdet.structures import DetDataSample

#: Number of inputs and of hidden units.
Sizes = tuple[int, int]


def plot_kept_sizes(
    path: str | Path, sizes: Mapping[str, Sizes], full: Mapping[str, Sizes]
) -> None:
    """Writes :func:`kept_sizes_figure` as a picture; the ending of ``path`` decides the format."""
    save_figure(kept_sizes_figure(sizes, full), path)


def kept_sizes_figure(sizes: Mapping[str, Sizes], full: Mapping[str, Sizes]) -> Figure:
    """Draws the kept inputs C' and hidden units H' of each feed-forward network as bars.

    Args:
        sizes: C' and H' by name of the network, first layer first.
        full: C and H of the dense network, by the same names.

    Raises:
        ValueError: ``sizes`` is empty.
    """
    if not sizes:
        raise ValueError('sizes is empty: there is no feed-forward network to draw')
    figure = Figure(figsize=(max(6.0, 0.6 * len(sizes) + 3), 3.2), layout='constrained')
    columns = zip(figure.subplots(1, 2), ("inputs C'", "hidden units H'"), strict=True)
    for index, (axes, title) in enumerate(columns):
        kept = [size[index] for size in sizes.values()]
        dense = [full[name][index] for name in sizes]
        axes.bar(range(len(kept)), dense, color='0.88', label='dense')
        bars = axes.bar(range(len(kept)), kept, color='tab:blue', label='kept')
        axes.bar_label(bars, fontsize='small')
        axes.set_title(title)
        axes.set_xlabel('layer')
        axes.set_xticks(range(len(kept)))
    axes.legend(loc='lower right')
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


def importance_figure(name: str, scores: tuple[Tensor, Tensor], kept: Kept) -> Figure:
    """Draws the importance of both weights of one feed-forward network.

    Beside each map a strip is dark where an element is kept: inputs and hidden units of W1, hidden
    units of W2. The colours reach to the 99th percentile, for single scores are often far larger.

    Args:
        name: The network, for the title.
        scores: Importance of W1, ``(H, C)``, and of W2, ``(C, H)``.
        kept: What stays of them.
    """
    figure = Figure(figsize=(11, 5), layout='constrained')
    figure.suptitle(f'importance in {name}')
    axes = figure.subplot_mosaic(
        [['.', 'inputs of fc1', 'inputs of fc2'], ['outputs of fc1', 'fc1', 'fc2']],
        width_ratios=(1, 15, 25),
        height_ratios=(1, 15),
    )
    labels = (('input', 'hidden unit'), ('hidden unit', 'output'))
    for layer, score, texts in zip(('fc1', 'fc2'), scores, labels, strict=True):
        rows, columns = score.shape
        picture = _reduce(score).numpy()
        image = axes[layer].imshow(
            picture,
            aspect='auto',
            extent=(0, columns, rows, 0),
            vmin=min(0.0, float(picture.min())),
            vmax=float(np.quantile(picture, 0.99)) or None,
            interpolation='nearest',
        )
        axes[layer].set_xlabel(texts[0])
        axes[layer].set_ylabel(texts[1])
        figure.colorbar(image, ax=axes[layer])
    hiddens, inputs = scores[0].shape
    _draw_strip(axes['inputs of fc1'], kept.inputs, inputs)
    _draw_strip(axes['inputs of fc2'], kept.hiddens, hiddens)
    _draw_strip(axes['outputs of fc1'], kept.hiddens, hiddens, upright=True)
    return figure


def _reduce(scores: Tensor, largest: int = 256) -> Tensor:
    """Means over blocks: a picture shows no more than that, and TensorBoard keeps every one."""
    size = [min(number, largest) for number in scores.shape]
    scores = scores.detach().float().cpu()
    return torch.nn.functional.adaptive_avg_pool2d(scores[None], size)[0]


def _draw_strip(axes: Axes, index: Tensor, number: int, upright: bool = False) -> None:
    """Dark where one of ``number`` elements is in ``index``."""
    mask = np.zeros(number, dtype=bool)
    mask[index.cpu().numpy()] = True
    axes.imshow(
        mask[:, None] if upright else mask[None],
        aspect='auto',
        cmap='Greys',
        vmin=0,
        vmax=1,
        interpolation='nearest',
    )
    axes.set_xticks([])
    axes.set_yticks([])
    text = f'{len(index)} of {number} kept'
    if upright:
        axes.set_ylabel(text, fontsize='small')
    else:
        axes.set_title(text, fontsize='small')


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
