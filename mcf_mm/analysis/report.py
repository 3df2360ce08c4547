"""What a pruning run did, in pictures: as PNG files and in the visualizer's backends."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.visualization import Visualizer
from torch import Tensor

from mcf_mm.analysis.complexity import Complexity, build_model, count_complexity, input_shape
from mcf_mm.models.ffn_sizes import sizes_in
from mcf_mm.pruning import Structure, find_ffns
from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.weights.checkpoint import read_state_dict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    out_dir: str | Path,
    structure: Structure,
    importance: Mapping[str, tuple[Tensor, Tensor]],
    before: Complexity,
    after: Complexity,
    visualizer: Visualizer | None = None,
    step: int = 0,
) -> list[Path]:
    """Draws what was kept, why, and what it saves.

    ``kept_sizes.png``, ``kept_inputs.png`` (networks of one width), ``parts.png``, and one
    ``importance_<FFN>.png`` for each FFN. A run does not fail for want of matplotlib: then the
    log says what to install, and nothing is drawn.

    Args:
        out_dir: Folder for the pictures, made if need be.
        structure: What was kept.
        importance: Scores of W1, ``(H, C)``, and of W2, ``(C, H)``, of the dense network, by FFN
            name: ``scores1`` and ``scores2`` of :class:`mcf_mm.pruning.SparseFFN`.
        before: What the dense network costs.
        after: What the pruned one costs.
        visualizer: Shows the pictures in its backends, such as TensorBoard, as ``mcf_<name>``.
            Defaults to None.
        step: Step of the visualizer. Defaults to 0.

    Returns:
        The pictures that were written.

    Raises:
        ValueError: ``importance`` lacks an FFN of ``structure``.
    """
    missing = [name for name in structure if name not in importance]
    if missing:
        raise ValueError(
            f'importance has no scores for {missing[0]!r}, which the structure names; it has '
            f'{list(importance)}'
        )
    plots = _plots()
    if plots is None:
        return []
    full = {name: tuple(importance[name][0].shape)[::-1] for name in structure}
    inputs = {name: kept.inputs for name, kept in structure.items()}
    figures = _overview(plots, full, structure.sizes, inputs, before, after)
    for name, kept in structure.items():
        figures[f'importance_{name}'] = plots.importance_figure(name, importance[name], kept)
    return _write(plots, figures, out_dir, visualizer, step)


def report_checkpoint(config: Config, checkpoint: str | Path, out_dir: str | Path) -> list[Path]:
    """Draws the sizes, the inputs and the costs that a finished checkpoint tells of.

    Args:
        config: Config of the network, of the dense or the pruned one.
        checkpoint: Its pruned weights.
        out_dir: Folder for ``kept_sizes.png``, ``kept_inputs.png`` and ``parts.png``.

    Returns:
        The pictures that were written.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The config's network has no FFN, or the checkpoint lacks one of them.
    """
    model = build_model(_dense(config))
    state_dict = read_state_dict(str(checkpoint))
    shape = input_shape(config)
    before = count_complexity(model, shape)
    ffns = find_ffns(model)
    if not ffns:
        raise ValueError(f'{type(model).__name__} has no FFN that could have been pruned')
    full, sizes, inputs = {}, {}, {}
    for ffn, found in zip(
        ffns, sizes_in(state_dict, ffns, '', str(checkpoint)).values(), strict=True
    ):
        full[ffn.name] = ffn.sizes
        resize_ffn(ffn, *found)
        sizes[ffn.name] = ffn.sizes
        index = state_dict.get(f'{ffn.name}.{ffn.fc1_path}.inputs')
        # Rows with inputs of their own have no one set to show.
        if index is not None and ffn.selection == 'layer':
            inputs[ffn.name] = index
    after = count_complexity(model, shape)
    plots = _plots()
    if plots is None:
        return []
    return _write(plots, _overview(plots, full, sizes, inputs, before, after), out_dir)


def _dense(config: Config) -> Config:
    """The config of the network before it was pruned."""
    config = copy.deepcopy(config)
    for part in (config.model, config.model.get('backbone') or {}):
        for key in ('sizes', 'ffn_inputs', 'ffn_hiddens', 'ffn_selection', 'init_cfg'):
            part.pop(key, None)
        if part.get('ffn_sizes'):
            part.ffn_sizes = {}
    return config


def _plots():
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


def _overview(
    plots,
    full: Mapping[str, tuple[int, int]],
    sizes: Mapping[str, tuple[int, int]],
    inputs: Mapping[str, Tensor],
    before: Complexity,
    after: Complexity,
) -> dict[str, 'Figure']:
    """The pictures of the whole network."""
    figures = {
        'kept_sizes': plots.kept_sizes_figure(sizes, full),
        'parts': plots.parts_figure(before, after),
    }
    widths = {full[name][0] for name in inputs}
    if len(widths) == 1:
        figures['kept_inputs'] = plots.kept_inputs_figure(inputs, widths.pop())
    return figures


def _write(
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
