"""Evaluation of checkpoints, the work of ``tools/test.py``: one, or two side by side."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import unwrapped
from mcf_mm.engine.runner import build_runner
from mcf_mm.pruning import find_units
from mcf_mm.registry import split_type

#: Rows of a table before the figures of the evaluators.
COSTS = ('parameters', 'MACs')


def evaluate(cfg: Config, checkpoint: str | Path) -> dict[str, float]:
    """Test a checkpoint with the ``test_evaluator`` of a config.

    Args:
        cfg: Config of the network, changed in place.
        checkpoint: Its weights.

    Returns:
        Figures by name, as MMEngine says them.

    Raises:
        ValueError: See :func:`mcf_mm.engine.runner.build_runner`.
    """
    return _run(cfg, checkpoint)[0]


def compare(cfgs: Sequence[Config], checkpoints: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Test two checkpoints on the same data.

    Args:
        cfgs: Their configs, changed in place.
        checkpoints: Their weights.

    Returns:
        By what to call it, dense or pruned where that tells them apart, the :data:`COSTS` and the
        figures of each.

    Raises:
        ValueError: The configs test on different data, or see :func:`evaluate`.
    """
    check_same_data(*cfgs)
    for cfg in cfgs:
        _by_class(cfg)
    found, states = [], []
    for cfg, checkpoint in zip(cfgs, checkpoints, strict=True):
        figures, model = _run(cfg, checkpoint)
        cost = count_complexity(model, input_shape(cfg))
        found.append(dict(zip(COSTS, (cost.params, cost.macs), strict=True)) | figures)
        pruned = any(unit.is_pruned for unit in find_units(model).every)
        states.append('pruned' if pruned else 'dense')
    names = states if len(set(states)) == len(states) else list(map(str, checkpoints))
    return dict(zip(names, found, strict=True))


def check_same_data(first: Config, second: Config) -> None:
    """Raise a ValueError if two configs test on different data."""
    sources = [_data(first), _data(second)]
    if sources[0] != sources[1]:
        told = [', '.join(f'{key}={value!r}' for key, value in own.items()) for own in sources]
        raise ValueError(
            f'test_dataloader of the two configs is of different data, {told[0]} and {told[1]}: '
            'their figures could not be compared; make them alike with --cfg-options'
        )


def _data(cfg: Config) -> dict[str, str]:
    """The files that a config tests on, by the setting that says so."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or ''
    images = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    return {
        'type': split_type(dataset.get('type', ''))[1],
        'ann_file': os.path.abspath(os.path.join(root, dataset.get('ann_file') or '')),
        'data_prefix': ', '.join(os.path.abspath(os.path.join(root, part)) for part in images),
        'split': str(dataset.get('split') or ''),
    }


def side_by_side(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of what :func:`compare` returns: a row for each figure."""
    names = list(results)
    lines = [f'| | {" | ".join(names)} |', '| --- ' * (1 + len(names)) + '|']
    rows = dict.fromkeys(key for own in results.values() for key in own)
    for key in rows:
        cells = [_cell(key, own.get(key)) for own in results.values()]
        lines.append(f'| {key} | {" | ".join(cells)} |')
    for name, own in results.items():
        if not own.keys() - COSTS:
            lines += ['', f'{name}: no figures, as it found nothing (the log says more)']
    return '\n'.join(lines)


def _cell(key: str, value: Any) -> str:
    if value is None or value == -1:  # what COCO says where there is no such box
        return ''
    if key in COSTS:
        size, unit = (1e6, 'M') if key == 'parameters' else (1e9, 'G')
        return f'{value / size:.3f} {unit}'
    return f'{value:.4g}' if isinstance(value, int | float) else str(value)


def _by_class(cfg: Config) -> None:
    """Let COCO's metric tell the AP of each class too."""
    evaluators = cfg.get('test_evaluator')
    for evaluator in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if evaluator and split_type(evaluator['type'])[1] == 'CocoMetric':
            evaluator['classwise'] = True


def _run(cfg: Config, checkpoint: str | Path) -> tuple[dict[str, float], Any]:
    cfg.load_from, cfg.resume = str(checkpoint), False
    runner = build_runner(cfg)
    figures = runner.test()
    return figures, unwrapped(runner)
