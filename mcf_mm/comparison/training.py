"""Equal training of the networks of a comparison."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mcf_mm.comparison.bench import Bench, Told
from mcf_mm.comparison.rows import SCORED, Row, methods
from mcf_mm.comparison.task import Task, network
from mcf_mm.engine.train import shorten_schedule, train
from mcf_mm.files import whole_file
from mcf_mm.pruning import find_units, within_budget
from mcf_mm.weights.slim_config import slim_config


def trained(task: Task, name: str, folder: Path, told: Told) -> dict[str, Any]:
    """Train the network of a row as ``tools/train.py`` does and report; a killed run goes on.

    Returns:
        ``top1`` and ``epochs``, with ``params`` and ``macs`` where the training has pruned.
    """
    row, bench = methods()[name], task.bench(folder, told)
    cfg = _training(task, row, name, bench, folder)
    shorten_schedule(cfg, task.epochs, steps(task, bench))
    told(f'training {task.epochs} epochs', 0, task.epochs)
    runner = train(cfg, 'latest')
    model = runner.model
    if row.how == 'scores':
        return bench.measured(model) | {'epochs': task.epochs}
    return {'top1': bench.reported(model)['top1'], 'epochs': task.epochs}


def _training(task: Task, row: Row, name: str, bench: Bench, folder: Path) -> Config:
    """The config that trains the network of a row, from its weights."""
    work_dir = folder / 'train'
    cfg = task.cfg(work_dir)
    if row.how in ('dense', 'scores'):
        cfg.load_from = task.checkpoint
    elif row.how == 'peer':
        weights = folder / 'slim.pth'
        with whole_file(weights) as partial:
            torch.save(network(task, name, folder).state_dict(), partial)
        cfg.model = dict(type='mcf_mm.WholeNetwork', file=str(folder / 'slim.pt'))
        cfg.load_from = str(weights)
    else:
        cfg = slim_config(network(task, name, folder), cfg, folder / 'slim.safetensors')
    if row.how == 'scores':
        hook = dict(
            type='mcf_mm.ScoreSearchHook',
            ratio=score_ratios(bench, task.budget),
            search_epochs=task.epochs // 2,
            kinds=list(SCORED),
        )
        cfg.custom_hooks = [*cfg.custom_hooks, hook]
    cfg.work_dir, cfg.resume = str(work_dir), False
    if (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': task.seed}
    return cfg


def score_ratios(bench: Bench, budget: str) -> dict[str, float]:
    """Share of each kind that the search by scores is to drop, which it does over all layers."""
    units = find_units(bench.dense)
    sizes = within_budget(units, bench.costs, budget, list(SCORED))
    ratios = {}
    for kind in SCORED:
        kept = sum(own.get(kind, 0) for own in sizes.values())
        full = sum(units.by_name[name].sizes[kind] for name, own in sizes.items() if kind in own)
        ratios[kind] = round(1 - kept / full, 6)
    return ratios


def steps(task: Task, bench: Bench) -> int:
    """Steps of an epoch of training."""
    number = len(bench.loader(task.seed).dataset.dataset)
    return max(1, number // (bench.cfg.train_dataloader.get('batch_size') or 1))
