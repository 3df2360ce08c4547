"""Reports of pruning runs: the pictures and the record of a cut, and the page of a finished run."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.visualization import Visualizer
from torch import Tensor

from mcf_mm.analysis.complexity import Complexity, count_complexity, resized
from mcf_mm.analysis.record import Record, read_record, record_cut
from mcf_mm.analysis.report import draw_sizes, write_report
from mcf_mm.analysis.throughput import compare, scatter_inputs
from mcf_mm.compat.versions import environment
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import Sizes, Structure, find_units
from mcf_mm.pruning.curves import Curves
from mcf_mm.search.timing import machine
from mcf_mm.weights.check import check_weights
from mcf_mm.weights.checkpoint import read_header, read_state_dict
from mcf_mm.weights.portable import command_line
from mcf_mm.weights.sizes import sizes_in
from mcf_mm.weights.slim_config import OLD_ARGUMENTS

#: Folder of the report, beside ``slim.safetensors``.
REPORT = 'report'


def report_cut(
    folder: str | Path,
    structure: Structure,
    full: Sizes,
    importance: Mapping[str, Mapping[str, Tensor]],
    before: Complexity,
    after: Complexity,
    curves: Curves | None = None,
    visualizer: Visualizer | None = None,
    step: int = 0,
) -> None:
    """Draw what a cut did, and note it in ``run.json`` for the page of the finished run.

    Args:
        folder: Folder of the report.
        structure: See :func:`mcf_mm.analysis.report.write_report`, as for those below.
        full: Sizes of the dense network.
        importance: Scores by unit and kind.
        before: What the dense network costs.
        after: What the pruned one costs.
        curves: Cost curves, where the criterion has some. Defaults to None.
        visualizer: Shows the pictures too. Defaults to None.
        step: Step of the visualizer. Defaults to 0.
    """
    write_report(folder, structure, full, importance, before, after, visualizer, step)
    record = record_cut(structure, full, importance, before, after, curves)
    record.made = made_here()
    record.save(folder)


def made_here() -> dict[str, Any]:
    """Command, versions and machine of this process, for :attr:`Record.made`."""
    return {
        'command': command_line(),
        'versions': environment(),
        'machine': machine_line(get_device()),
    }


def machine_line(device: torch.device | str = 'cpu') -> str:
    """The machine that times and results are of, in words."""
    facts = machine(device)
    threads = facts['threads']
    return f'{facts["device"]}, {threads} thread(s)' if threads else str(facts['device'])


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
    record = record_of_checkpoint(config, checkpoint)
    inputs = {name: torch.tensor(index) for name, index in record.inputs.items()}
    return draw_sizes(out_dir, record.full, record.sizes, inputs, *record.costs)


def record_of_checkpoint(config: Config, checkpoint: str | Path) -> Record:
    """The record of a finished checkpoint: what its weights tell, see :func:`report_checkpoint`."""
    return record_of_weights(config, read_state_dict(str(checkpoint)), str(checkpoint))


def record_of_weights(config: Config, state_dict: Mapping[str, Tensor], source: str) -> Record:
    """What pruned weights tell of their cut.

    Args:
        config: Config of the network, of the dense or the pruned one.
        state_dict: All of its weights.
        source: What to call them in an error.

    Raises:
        ValueError: The config's network has no unit, or the weights are not those of one.
    """
    model = build_model(dense_config(config))
    units = find_units(model)
    if not units:
        raise ValueError(f'{type(model).__name__} has no FFN that could have been pruned')
    sizes = sizes_in(state_dict, units.every, '', source)
    slim = resized(model, sizes)
    check_weights(slim, state_dict, source=source)
    inputs = {
        ffn.name: index.tolist()
        for ffn in units.ffns
        if (index := state_dict.get(f'{ffn.name}.{ffn.fc1_path}.inputs')) is not None
    }
    shape = input_shape(config)
    before, after = (count_complexity(network, shape).to_dict() for network in (model, slim))
    return Record(units.all_sizes, sizes, before, after, inputs)


def dense_config(config: Config) -> Config:
    """The config of the network before it was pruned."""
    config = copy.deepcopy(config)
    for part in (config.model, config.model.get('backbone') or {}):
        for key in ('sizes', 'ffn_sizes', 'init_cfg', *OLD_ARGUMENTS):
            part.pop(key, None)
    return config


def known_record(folder: str | Path, checkpoint: str | Path) -> Record | None:
    """The record in a folder, None where there is none or where it is of another network."""
    record = read_record(folder)
    if record is None:
        return None
    sizes = read_header(checkpoint).get('sizes') or {}
    for name, own in record.sizes.items():
        if {kind: sizes.get(name, {}).get(kind) for kind in own} != own:
            print_log(
                f'{folder} has the record of another network than {checkpoint}, whose sizes of '
                f'{name} differ: it is left out',
                logger='current',
                level=logging.WARNING,
            )
            return None
    return record


def time_networks(config: Config, sizes: Sizes, batch_size: int, rounds: int) -> dict[str, Any]:
    """Time the dense and the pruned network side by side.

    Args:
        config: Config of the network, of the dense or the pruned one.
        sizes: Sizes of the pruned units.
        batch_size: Images in a batch.
        rounds: Timed passes of each.

    Returns:
        :meth:`mcf_mm.analysis.throughput.Comparison.to_dict` and ``how`` it was measured.
    """
    dense = build_model(dense_config(config))
    models = {'dense': dense, 'pruned': resized(dense, sizes)}
    scatter_inputs(models['pruned'])
    shape = input_shape(config)
    comparison = compare(models, shape, batch_size=batch_size, rounds=rounds)
    how = (
        f'{machine_line()}; float32, batches of {batch_size} images of {shape[0]} x {shape[1]} '
        f'pixels, median of {rounds} passes of each network in turn'
    )
    return {**comparison.to_dict(), 'how': how}


def find_run(path: str | Path, config: str | None = None) -> tuple[Path, Path]:
    """The checkpoint and the config that somebody means.

    Args:
        path: Work directory of a run, or pruned weights.
        config: Config. Defaults to the ``.py`` file beside the weights.

    Returns:
        Paths of the checkpoint and the config.

    Raises:
        FileNotFoundError: One is not there.
    """
    checkpoint = Path(path)
    if checkpoint.is_dir():
        checkpoint = checkpoint / 'slim.safetensors'
        if not checkpoint.is_file():
            raise FileNotFoundError(
                f'{path} has no slim.safetensors: name a folder that tools/prune.py or a pruning '
                'hook has written to, or pruned weights'
            )
    if not checkpoint.is_file():
        raise FileNotFoundError(f'no checkpoint {checkpoint}')
    found = checkpoint.with_suffix('.py') if config is None else Path(config)
    if not found.is_file():
        raise FileNotFoundError(f'no config file {found}: say --config')
    return checkpoint, found


def check_options(config: Config, dense: str | None, images: Sequence[str] | None) -> None:
    """Check that predictions can be compared as asked for.

    Raises:
        ValueError: Images or the dense weights are missing, or are not for this network.
    """
    detector = config.get('default_scope') == 'mmdet'
    if images and dense is None:
        raise ValueError('--images are for comparing with --dense CHECKPOINT: name it')
    if images and not detector:
        raise ValueError('--images are for detectors: a classifier takes those of its config')
    if detector and dense is not None and not images:
        raise ValueError('--dense of a detector needs images to draw in: --images FILE ...')
