"""The report of a finished checkpoint, the work of ``tools/report.py``."""

import copy
from pathlib import Path

from mmengine.config import Config

from mcf_mm.analysis.complexity import count_complexity, resized
from mcf_mm.analysis.report import draw_sizes
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_units
from mcf_mm.weights.check import check_weights
from mcf_mm.weights.checkpoint import read_state_dict
from mcf_mm.weights.sizes import sizes_in
from mcf_mm.weights.slim_config import OLD_ARGUMENTS


def report_checkpoint(config: Config, checkpoint: str | Path, out_dir: str | Path) -> list[Path]:
    """Draw the sizes, the inputs and the costs that a finished checkpoint tells of.

    Args:
        config: Config of the network, of the dense or the pruned one.
        checkpoint: Its pruned weights.
        out_dir: Folder for ``kept_sizes.png``, ``kept_inputs.png`` and ``parts.png``.

    Returns:
        The pictures that were written.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The config's network has no unit, or the checkpoint is not one of it.
    """
    model = build_model(dense_config(config))
    state_dict = read_state_dict(str(checkpoint))
    units = find_units(model)
    if not units:
        raise ValueError(f'{type(model).__name__} has no FFN that could have been pruned')
    full = units.all_sizes
    sizes = sizes_in(state_dict, units.every, '', str(checkpoint))
    slim = resized(model, sizes)
    check_weights(slim, state_dict, source=str(checkpoint))
    inputs = {
        ffn.name: index
        for ffn in units.ffns
        if (index := state_dict.get(f'{ffn.name}.{ffn.fc1_path}.inputs')) is not None
    }
    shape = input_shape(config)
    return draw_sizes(
        out_dir,
        full,
        sizes,
        inputs,
        count_complexity(model, shape),
        count_complexity(slim, shape),
    )


def dense_config(config: Config) -> Config:
    """The config of the network before it was pruned."""
    config = copy.deepcopy(config)
    for part in (config.model, config.model.get('backbone') or {}):
        for key in ('sizes', 'ffn_sizes', 'init_cfg', *OLD_ARGUMENTS):
            part.pop(key, None)
    return config
