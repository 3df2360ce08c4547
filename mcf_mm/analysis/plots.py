"""Pictures of what pruning does: sizes that are kept, detections side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData


def plot_kept_sizes(
    path: str | Path, sizes: Mapping[str, tuple[int, int]], full: tuple[int, int]
) -> None:
    """Draws the kept inputs C' and hidden units H' of each feed-forward network as bars.

    Args:
        path: Picture to write; its ending decides the format.
        sizes: C' and H' by name of the network, first layer first.
        full: C and H of the dense network.

    Raises:
        ValueError: ``sizes`` is empty.
    """
    if not sizes:
        raise ValueError('sizes is empty: there is no feed-forward network to draw')
    figure = Figure(figsize=(max(6.0, 0.6 * len(sizes) + 3), 3.2), layout='constrained')
    columns = zip(figure.subplots(1, 2), ("inputs C'", "hidden units H'"), strict=True)
    for index, (axes, title) in enumerate(columns):
        kept = [size[index] for size in sizes.values()]
        axes.bar(range(len(kept)), [full[index]] * len(kept), color='0.88', label='dense')
        bars = axes.bar(range(len(kept)), kept, color='tab:blue', label='kept')
        axes.bar_label(bars, fontsize='small')
        axes.set_title(title)
        axes.set_xlabel('layer')
        axes.set_xticks(range(len(kept)))
    axes.legend(loc='lower right')
    _save(figure, path)


def plot_detections(
    path: str | Path,
    images: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[DetDataSample]],
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
    _save(figure, path)


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


def _save(figure: Figure, path: str | Path) -> None:
    """Writes a picture; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.part{path.suffix}')
    try:
        figure.savefig(partial, dpi=120)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
