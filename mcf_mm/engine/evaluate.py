"""Evaluation of checkpoints, the work of ``tools/test.py``: one, or two side by side."""

import math
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
#: How a data set is read, which differs from network to network.
_READING = ('pipeline', 'serialize_data', 'lazy_init', 'test_mode', 'backend_args', '_scope_')


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
        The :data:`COSTS` and the figures of each, by name: ``'dense'`` and ``'pruned'`` where that
        tells them apart, or else their configs.

    Raises:
        ValueError: The configs test on different data, or see :func:`evaluate`.
    """
    check_same_data(*cfgs)
    for cfg, checkpoint in zip(cfgs, checkpoints, strict=True):
        input_shape(cfg)  # before hours of testing
        if '://' not in str(checkpoint) and not Path(checkpoint).expanduser().is_file():
            raise FileNotFoundError(f'no checkpoint {checkpoint}')
        _by_class(cfg)
    found, states = [], []
    for cfg, checkpoint in zip(cfgs, checkpoints, strict=True):
        figures, model = _run(cfg, checkpoint)
        cost = count_complexity(model, input_shape(cfg))
        found.append(dict(zip(COSTS, (cost.params, cost.macs), strict=True)) | figures)
        states.append('pruned' if find_units(model).are_pruned else 'dense')
    return dict(zip(_names(cfgs, checkpoints, states), found, strict=True))


def _names(
    cfgs: Sequence[Config], checkpoints: Sequence[str | Path], states: Sequence[str]
) -> list[str]:
    """Names that differ: by what the networks are, or else by their files."""
    stems = [Path(cfg.filename).stem for cfg in cfgs]
    for names in (states, stems, [str(path) for path in checkpoints]):
        if len(set(names)) == len(names):
            return list(names)
    return [f'{number}: {stem}' for number, stem in enumerate(stems, start=1)]


def check_same_data(first: Config, second: Config) -> None:
    """Raise a ValueError if two configs test on different data."""
    one, other = (
        {'dataset': _data((cfg.get('test_dataloader') or {}).get('dataset')), **_truth(cfg)}
        for cfg in (first, second)
    )
    if one == other:
        return
    told = []
    for own, foreign in ((one, other), (other, one)):
        own, foreign = ({**whole, **(whole['dataset'] or {})} for whole in (own, foreign))
        told.append(
            ', '.join(
                f'{key}={value!r}'
                for key, value in own.items()
                if key != 'dataset' and value != foreign.get(key)
            )
            or 'none of it'
        )
    raise ValueError(
        f'test_dataloader or test_evaluator of the two configs is of different data, {told[0]} and '
        f'{told[1]}: their figures could not be compared; make them alike with --cfg-options'
    )


def _data(dataset: Any) -> Any:
    """What a config tests on: all settings of a data set but how its images are read."""
    if isinstance(dataset, list | tuple):
        return [_data(part) for part in dataset]
    if not isinstance(dataset, Mapping):
        return dataset
    own = {key: value for key, value in dataset.items() if key not in _READING}
    for key in ('dataset', 'datasets'):
        if key in own:
            own[key] = _data(own[key])
    if 'type' in own:
        own['type'] = split_type(own['type'])[1]
    root = own.pop('data_root', None) or ''
    for key in ('ann_file', 'data_prefix'):
        value = own.get(key) or ''
        parts = value.values() if isinstance(value, Mapping) else [value]
        own[key] = [os.path.abspath(os.path.join(root, part or '')) for part in parts]
    return {key: _plain(value) for key, value in own.items()}


def _plain(value: Any) -> Any:
    """Lists in place of tuples, which a written config may have instead."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _truth(cfg: Config) -> dict[str, Any]:
    """The annotation files of the evaluators."""
    evaluators = cfg.get('test_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, list | tuple) else [evaluators]
    files = [evaluator.get('ann_file') for evaluator in evaluators]
    return {'test_evaluator': [os.path.abspath(file) for file in files if file]}


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
    if not isinstance(value, int | float):
        return '' if value is None else str(value)
    if value == -1 or math.isnan(value):  # what COCO and mmdet say where there is no such box
        return ''
    if key in COSTS:
        size, unit = (1e6, 'M') if key == 'parameters' else (1e9, 'G')
        return f'{value / size:.3f} {unit}'
    return f'{value:.4g}'


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
