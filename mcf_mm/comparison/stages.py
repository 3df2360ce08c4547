"""The stages of a comparison, each run in a process of its own."""

import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcf_mm.analysis.complexity import num_channels, tensor_arguments
from mcf_mm.analysis.throughput import measure_throughput
from mcf_mm.comparison import peers
from mcf_mm.comparison.bench import BATCH_SIZE, Bench, Told, check_apart, report_loader
from mcf_mm.comparison.processes import device_peak, forget_peaks, resident_peak
from mcf_mm.comparison.rows import (
    Row,
    check_budget,
    methods,
    searched_kinds,
    why_not,
)
from mcf_mm.comparison.task import Task, network, write_network
from mcf_mm.comparison.training import steps, trained
from mcf_mm.engine.calibration_data import calibration_loader, folder_images
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.heal import check_heal_model, heal_model
from mcf_mm.engine.search import search_checkpoint
from mcf_mm.engine.train import shorten_schedule
from mcf_mm.files import write_json
from mcf_mm.pruning import find_units, read_policy
from mcf_mm.pruning.budget import parse_budget
from mcf_mm.search.shape import Shape

#: In the folder of a row of torch-pruning.
RATIO = 'ratio.json'


def plan(task: Task, rows: list[str], told: Told) -> dict[str, Any]:
    """Check what was asked for before any work is done.

    Returns:
        ``left_out``, the reason by row; ``counts`` of images of each sort; ``notes`` of what was
        not checked or is done otherwise; ``what`` the budget is of, how many of it are ``wanted``,
        and those of the ``dense`` network.

    Raises:
        ValueError: The budget is none, or images to report on are used otherwise as well.
    """
    bench = task.bench(Path(task.out), told)
    check_budget(task.budget, bench.costs)
    report = report_loader(bench.cfg).dataset
    loader = bench.loader(task.seed)
    notes = check_apart(report, loader.dataset, 'to calibrate on')
    counts = {'calibration': len(loader.dataset), 'report': len(report)}
    if task.heal is not None:
        check_heal_model(bench.dense, bench.cfg, loader, task.heal)
        if task.heal.get('folder'):
            others = folder_images(bench.cfg, task.heal['folder'])
            notes += check_apart(report, others, 'to heal on')
    if task.epochs is not None:
        # All of the training set, where calibration takes some.
        notes += check_apart(report, loader.dataset.dataset, 'to train on')
        counts['training'] = len(loader.dataset.dataset)
        notes += shorten_schedule(copy.deepcopy(bench.cfg), task.epochs, steps(task, bench))
    known, reasons = methods(), {}
    for name in rows:
        row = known[name]
        reason = why_not(row, bench.dense, bench.costs, task.budget, task.epochs, task.trials)
        if reason is not None:
            reasons[name] = reason
    what, wanted = parse_budget(task.budget, bench.costs)
    cost = dict(what=what, wanted=wanted, dense=bench.costs.of({})[what])
    return {'left_out': reasons, 'counts': counts, 'notes': notes, **cost}


def ratio(task: Task, name: str, folder: Path, told: Told) -> dict[str, Any]:
    """Find the ratio that torch-pruning is to be given.

    How is ours, so that it counts neither in the seconds nor in the memory of pruning.

    Returns:
        ``ratio``, which is written for the stage that prunes.
    """
    bench = task.bench(folder, told)
    told('finding the ratio', 0, 1)
    found = peers.ratio_for(
        bench.dense, task.budget, bench.costs, bench.shape, **methods()[name].arguments
    )
    write_json(folder / RATIO, {'ratio': found})
    return {'ratio': found}


def one_shot(task: Task, name: str, folder: Path, told: Told) -> dict[str, Any]:
    """Prune by a method, report, and write the network to a folder.

    Returns:
        ``params``, ``macs``, ``top1``, ``images``; ``seconds`` and ``processor_seconds`` of
        pruning; ``peak_bytes``, the most that the process had in memory until then, of which
        ``before_bytes`` before pruning began, and ``gpu_peak_bytes``; ``peak_of_all`` where the
        system cannot begin a peak anew, so that it is of all that the process did.
    """
    row, bench = methods()[name], task.bench(folder, told)
    check_budget(task.budget, bench.costs)  # costs are counted before the clock runs
    model = bench.dense  # in place: a copy would count as memory of the method
    ready = _pruning(row, bench, model, task, folder)
    anew = forget_peaks()
    before = resident_peak()
    clock = time.perf_counter(), time.process_time()
    facts = ready()
    spent = time.perf_counter() - clock[0], time.process_time() - clock[1]
    memory = dict(peak_bytes=resident_peak(), before_bytes=before, gpu_peak_bytes=device_peak())
    memory |= {} if anew else dict(peak_of_all=True)
    result = bench.measured(model)
    if row.how != 'dense':
        write_network(model, name, bench, task, folder)
        result |= dict(seconds=round(spent[0], 2), processor_seconds=round(spent[1], 2), **memory)
    return result | facts


def _pruning(
    row: Row, bench: Bench, model: nn.Module, task: Task, folder: Path
) -> Callable[[], dict[str, Any]]:
    """The function that prunes ``model``: what is not the method's own is done before."""
    arguments = dict(row.arguments)
    loader = None if row.how == 'dense' else bench.loader(task.seed)
    if row.how == 'prune':
        arguments |= dict(budget=task.budget)
    elif row.how == 'uniform':
        shape = Shape(find_units(model), bench.costs, task.budget)
        arguments['sizes'] = shape.sizes(dict.fromkeys(shape.names, 0.5))
    elif row.how == 'peer':
        arguments |= json.loads((folder / RATIO).read_text(encoding='utf-8'))

    def prune() -> dict[str, Any]:
        if row.how in ('prune', 'uniform'):
            bench.call(model, loader, **arguments)
        elif row.how == 'peer':
            peers.torch_pruning(model, loader, shape=bench.shape, **arguments)
        elif row.how == 'search':
            bench.call(model, loader, sizes=_search(task, bench, folder), **arguments)
            return {'trials': task.trials}
        return {}

    return prune


def _search(task: Task, bench: Bench, folder: Path) -> dict[str, dict[str, int]]:
    """The best policy of a search that shares the calibration images out: it sees no others."""
    images = len(bench.loader(task.seed).dataset)
    score = max(1, round(0.4 * images))
    search_checkpoint(
        bench.cfg, task.checkpoint, folder / 'search', task.budget, task.trials,
        dims=searched_kinds(find_units(bench.dense)), seed=task.seed, num_images=images - score,
        search_images=score, resume=(folder / 'search' / 'study.db').is_file(),
    )  # fmt: skip
    return read_policy(folder / 'search' / 'policy.json')


def speed(task: Task, name: str, folder: Path, told: Told) -> dict[str, Any]:
    """Memory of inference, and images per second in turn with the dense network.

    Returns:
        ``inference_peak_bytes`` of a process that has the network alone and runs one batch, or of
        the GPU's tensors in doing so, with ``peak_of_all`` as in :func:`one_shot`;
        ``images_per_second`` and ``dense_images_per_second``.
    """
    told('measuring speed', 0, 2)
    model, shape = network(task, name, folder), input_shape(task.cfg(folder))
    channels = num_channels(model)
    images = torch.randn(task.batch, channels, *shape, device=next(model.parameters()).device)
    anew = forget_peaks()
    with torch.no_grad():
        model(images, **tensor_arguments(model, shape, task.batch))
    peak = device_peak()
    result: dict[str, Any] = {'inference_peak_bytes': resident_peak() if peak is None else peak}
    result |= {} if anew else dict(peak_of_all=True)
    told('measuring speed', 1, 2)
    networks = {'dense': network(task, 'dense', folder)}
    if name != 'dense':
        networks[name] = model
    speeds = measure_throughput(networks, (channels, *shape), task.batch, task.rounds)
    return result | {
        'images_per_second': round(speeds[name], 2),
        'dense_images_per_second': round(speeds['dense'], 2),
    }


def heal(task: Task, name: str, folder: Path, told: Told) -> dict[str, Any]:
    """Heal the network of a row and report; what was interrupted goes on.

    Returns:
        ``top1``, ``seconds`` and ``images`` of healing.
    """
    bench = task.bench(folder, told)
    model, state = network(task, name, folder), folder / 'heal_state.pt'
    told('healing', 0, 1)
    loader = calibration_loader(bench.cfg, task.images, task.seed, BATCH_SIZE)
    settings = {'seed': task.seed, **task.heal}
    healed = heal_model(model, bench.dense, bench.cfg, loader, settings, state)
    write_network(model, name, bench, task, folder, 'healed')
    state.unlink(missing_ok=True)
    return {
        'top1': bench.reported(model)['top1'],
        'seconds': round(healed.seconds, 1),
        'images': healed.images,
    }


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    'ratio': ratio,
    'one_shot': one_shot,
    'speed': speed,
    'healed': heal,
    'trained': trained,
}


def run_stage(task: Task, stage: str, name: str, folder: Path, told: Told) -> dict[str, Any]:
    """One stage of a row."""
    return STAGES[stage](task, name, folder, partial(_named, told, name))


def _named(told: Told, name: str, what: str, done: int, number: int) -> None:
    told(f'{name}: {what}', done, number)
