"""What a training run of a small network leaves: weights, config, card and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mcf_mm.analysis.record import Record, read_record
from mcf_mm.analysis.training_log import read_training_log
from mcf_mm.engine.config import hook_types, input_shape
from mcf_mm.engine.networks import averages, unwrapped
from mcf_mm.engine.report import REPORT, known_record, made_here, record_of_weights
from mcf_mm.engine.run_page import report_run
from mcf_mm.engine.runner import require_supported_parallelism
from mcf_mm.pruning import find_units
from mcf_mm.weights.files import read_header
from mcf_mm.weights.portable import portable
from mcf_mm.weights.slim_config import PRUNING_HOOKS, write_slim

#: What a header says of the file itself, not of how the network was made.
_OF_THE_FILE = ('sizes', 'version', 'indices_sha256', 'dataset_meta', 'grids')


def write_run(runner: Runner, facts: dict, stem: str = 'slim') -> None:
    """Write the network of a finished run that pruned it, and the config that builds it.

    The average of an EMAHook, where there is one, is what validation and MMEngine's checkpoints
    have, so it is what is written.
    """
    if runner.rank != 0:
        return
    record = read_record(Path(runner.work_dir) / REPORT) if stem == 'slim' else None
    path = _write(runner, facts, stem, record)
    if stem == 'slim':
        runner.logger.info(f'pruning: wrote {report_run(path, path.with_suffix(".py"))}')


def start_of(cfg: Config) -> str | None:
    """The weights that the training of a config begins with: all of them, or a backbone's.

    Ask before the run begins: one that resumes has its own checkpoint there.
    """
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    inits = backbone.get('init_cfg') or []
    for init in [inits] if isinstance(inits, Mapping) else inits:
        if cfg.get('load_from') is None and init.get('checkpoint'):
            return init['checkpoint']
    return cfg.get('load_from')


def check_work_dir(cfg: Config, start: str | None) -> None:
    """Check that the training of a pruned network will write over no other network.

    Args:
        cfg: Config of the run.
        start: What it begins with, see :func:`start_of`.

    Raises:
        ValueError: The work directory has a ``slim.safetensors`` of something else.
    """
    own = Path(cfg.work_dir) / 'slim.safetensors'
    model = cfg.get('model') or {}
    slim = any(part.get('sizes') for part in (model, model.get('backbone') or {}))
    if not own.is_file() or not slim or set(PRUNING_HOOKS) & set(hook_types(cfg)):
        return
    before = read_header(own).get('trained') or []
    if before and before[-1]['from'] == portable(str(start)):
        return  # of this run, begun before
    raise ValueError(
        f'{own} is of another network, and this training would write its own there: name another '
        'folder with --work-dir'
    )


def write_trained(runner: Runner, start: str | None) -> Path | None:
    """Write the network of a finished run that began with a pruned one, as :func:`write_run` does.

    Args:
        runner: A run that was trained to its end.
        start: What it began with, see :func:`start_of`.

    Returns:
        ``slim.safetensors`` in the work directory; None in processes but the first, for dense
        networks, where a pruning hook writes, and where the network cannot be written, with a line
        of the log: its checkpoints are the result.
    """
    pruning = any(hasattr(hook, 'is_small') for hook in runner.hooks)
    if runner.rank != 0 or pruning:
        return None
    network = [unwrapped(runner), *averages(runner)][-1]
    if not find_units(network).are_pruned:
        return None
    try:
        require_supported_parallelism(runner.cfg)
        return _write_trained(runner, network, start)
    except (ValueError, RuntimeError) as error:
        runner.logger.error(
            f'the trained network is in {runner.work_dir}, as checkpoints alone; no '
            f'slim.safetensors is written: {error}'
        )
        return None


def _write_trained(runner: Runner, network: nn.Module, start: str | None) -> Path:
    work_dir, header = Path(runner.work_dir), {}
    if start is not None and start.endswith('.safetensors') and Path(start).is_file():
        header = read_header(start)
    facts = {key: value for key, value in header.items() if key not in _OF_THE_FILE}
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    done = {'epochs': runner.epoch} if by_epoch else {'iterations': runner.iter}
    facts['trained'] = [*(header.get('trained') or []), {**done, 'from': str(start)}]
    record = record_of_weights(runner.cfg, network.state_dict(), str(start))
    path = _write(runner, facts, 'slim', record)
    if start is not None and (Path(start).parent / REPORT).is_dir():
        cut = known_record(Path(start).parent / REPORT, path)
        # Of the same network: a detector costs other than the classifier its backbone is of.
        if cut is not None and cut.after['params'] == record.after['params']:
            record.importance, record.curves = cut.importance, cut.curves
    record.made = made_here()
    record.save(work_dir / REPORT)
    page = report_run(path, path.with_suffix('.py'), work_dir / REPORT, record)
    runner.logger.info(f'the trained network is small: wrote {page}')
    return path


def _write(runner: Runner, facts: dict, stem: str, record: Record | None) -> Path:
    """Write weights, config and card of a run."""
    arguments: dict[str, Any] = {'shape': input_shape(runner.cfg)}
    if stem != 'masked':
        log = read_training_log(runner.work_dir, small='trained' in facts)
        arguments['measured'] = None if log is None else log.measured
    if record is not None:
        arguments['costs'] = record.costs
    network = [unwrapped(runner), *averages(runner)][-1]
    dataset = runner.train_dataloader.dataset
    path = write_slim(network, runner.cfg, runner.work_dir, facts, dataset, stem, **arguments)
    files = f'{path}, {path.with_suffix(".py")} and {path.with_suffix(".md")}'
    runner.logger.info(f'pruning: wrote {files}')
    return path
