"""One-shot pruning of a checkpoint, the work of ``tools/prune.py``."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import track_iter_progress
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader

from mcf_mm.analysis.complexity import Complexity, count_complexity
from mcf_mm.engine.calibration_data import (
    calibration_loader,
    forward_and_loss,
    image_names,
    tensor_forward,
)
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.heal import check_heal_model, check_heal_step, heal_model
from mcf_mm.engine.networks import build_model, model_costs, model_latency
from mcf_mm.engine.report import REPORT, report_cut
from mcf_mm.engine.run_page import report_run
from mcf_mm.pruning import (
    MCF,
    Costs,
    Criterion,
    Healing,
    Seen,
    Sizes,
    build_criterion,
    calibrate,
    prune,
)
from mcf_mm.pruning.budget import Budget, budget_kind
from mcf_mm.pruning.criteria.obs import OBS
from mcf_mm.pruning.criteria.regular import check_last_step, held_masks, hold
from mcf_mm.pruning.curves import Curves
from mcf_mm.pruning.distances import check_token_outputs
from mcf_mm.pruning.policy import without_tokens
from mcf_mm.pruning.prune import Ratios, open_policy, require_units, resolve_policy
from mcf_mm.pruning.structure import check_whole
from mcf_mm.weights.checkpoint import load_weights
from mcf_mm.weights.slim_config import write_slim
from mcf_mm.weights.statistics import (
    fingerprint,
    read_statistics,
    statistics_path,
    write_statistics,
)

#: Which images a file of cost curves was made of, and so a network that is cut by it.
_IMAGES = ('num_images', 'seed')
#: Settings of the criterion that a file of cost curves is bound to, and their names there.
_SETTINGS = {'allocation': 'curves', 'metric': 'metric'}
#: In the output folder while a network is being healed.
HEAL_STATE = 'heal_state.pt'


def prune_checkpoint(
    cfg: Config,
    checkpoint: str,
    out_dir: str | Path,
    num_images: int = 1024,
    seed: int = 0,
    criterion: Any = 'mcf',
    ratios: Ratios | None = None,
    sizes: Sizes | str | None = None,
    last_step: str = 'x_transformation',
    compensation: str | None = None,
    multiple: int = 1,
    budget: Budget | None = None,
    kinds: Iterable[str] | None = None,
    curves: str | Path | None = None,
    latency: str | Path | None = None,
    latency_batch: int = 1,
    heal: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Path:
    """Prune a trained network and write the slim checkpoint, its config and a report.

    Args:
        cfg: Config of the dense network, with a training set.
        checkpoint: Its weights.
        out_dir: Folder for ``slim.safetensors``, ``slim.py``, ``slim.md`` and ``report/``.
        num_images: Calibration images. Defaults to 1024.
        seed: Chooses them. Defaults to 0.
        criterion: See :func:`mcf_mm.pruning.prune`. Defaults to ``'mcf'``.
        ratios: See :func:`mcf_mm.pruning.prune`.
        sizes: See :func:`mcf_mm.pruning.prune`.
        last_step: ``'fis'`` and ``'crs'`` end MCF early: ``masked.safetensors`` has the full size
            and zeros. Defaults to ``'x_transformation'``.
        compensation: See :func:`mcf_mm.pruning.prune`. Defaults to that of the criterion.
        multiple: See :func:`mcf_mm.pruning.prune`. Defaults to 1.
        budget: See :func:`mcf_mm.pruning.prune`.
        kinds: See :func:`mcf_mm.pruning.prune`.
        curves: JSON file of cost curves, with a budget. If it is there, they and the moments beside
            it are read and no image is; if not, both are written. Defaults to None.
        latency: JSON file of measured times, with a budget of latency: read if it is there and
            written if not, see :func:`mcf_mm.engine.networks.model_latency`. Defaults to None:
            times are measured and not kept.
        latency_batch: Images at a time when times are measured. Defaults to 1.
        heal: Settings of :class:`mcf_mm.pruning.Healing`, such as ``dict(minutes=15)``: the small
            network is drawn to the dense one after the cut, see
            :func:`mcf_mm.engine.heal.heal_model`. Defaults to None.
        resume: Go on with a healing that was interrupted, from ``heal_state.pt`` in the folder.
            Pruning is done again, with the same result. Defaults to False.

    Returns:
        Path of the slim checkpoint.

    Raises:
        ValueError: See :func:`mcf_mm.pruning.prune`; the checkpoint is not one of this network; it
            cannot be healed, or the folder has the state of a healing and ``resume`` is not given.
    """
    criterion_settings, criterion = criterion, build_criterion(criterion)
    compensation = criterion.compensation if compensation is None else compensation
    check_last_step(last_step, compensation)
    check_heal_step(last_step, heal)
    check_curves(curves, budget, criterion)
    check_whole('latency_batch', latency_batch, 1)
    if budget is None or budget_kind(budget) != 'latency':
        for name, value, default in (
            ('latency', latency, None),
            ('latency_batch', latency_batch, 1),
        ):
            if value != default:
                raise ValueError(f'{name}={value} is for a budget of latency, got budget={budget}')
    state_file = Path(out_dir) / HEAL_STATE
    if heal is not None:
        Healing.of(heal)
        heal = {'seed': seed, **heal}
    _check_state(state_file, heal, resume)
    model = build_model(cfg).to(get_device())
    units, shape = require_units(model), input_shape(cfg)
    costs = None
    if budget is None:
        policy = resolve_policy(units, ratios, sizes, multiple)
    else:
        costs = _costs(model, shape, budget, latency, latency_batch)
        policy = open_policy(units, costs, budget, kinds, criterion, multiple)
    if heal is not None:
        dropping = [name for name, own in policy.items() if 'tokens' in own]
        check_token_outputs(units, dropping, 'heal')
    load_weights(model, checkpoint)
    # Gradients keep the activations of a batch.
    felt = any(
        observer.needs_gradients for observer in criterion.observers(units, without_tokens(policy))
    )
    loader = calibration_loader(cfg, num_images, seed, 16 if felt else 64)
    before, full = count_complexity(model, shape), require_units(model).all_sizes
    facts = dict(
        origin=str(checkpoint),
        criterion=criterion_settings,
        last_step=last_step if isinstance(criterion, MCF) else None,
        compensation=compensation,
        multiple=multiple,
        num_images=len(loader.dataset),
        seed=seed,
    )
    if budget is not None:
        facts['budget'] = budget if isinstance(budget, str) else dict(budget)
        facts['curves'] = None if curves is None else str(curves)
        facts['latency'] = None if costs.latency is None else costs.latency.facts
    if isinstance(ratios, Mapping):
        facts['ratios'] = dict(ratios)
    dataset = loader.dataset.dataset
    if last_step != 'x_transformation':
        _apply_masks(model, FirstShown(loader), criterion, policy)
        path = write_slim(model, cfg, out_dir, facts, dataset, 'masked')
        return _told(path, before, before)
    if heal is not None:
        check_heal_model(model, cfg, loader, heal, state_file)
        dense = copy.deepcopy(model)
    forward, loss = forward_and_loss(model, criterion.observers(units, without_tokens(policy)))
    network = None if curves is None else fingerprint(model)
    known, seen = _known(curves, model, criterion, criterion_settings)
    if known is not None:
        facts |= {key: known.facts.get(key) for key in _IMAGES}
    with steps_bar() as progress:
        structure = prune(
            model,
            FirstShown(loader),
            criterion,
            sizes=policy if budget is None else None,
            compensation=compensation,
            forward=forward,
            image_names=image_names,
            loss=loss,
            budget=budget,
            kinds=kinds,
            curves=known,
            costs=costs,
            seen=seen,
            progress=progress,
        )
    if curves is not None and known is None:
        made = {'origin': str(checkpoint), 'metric': criterion.metric}
        made |= {key: facts[key] for key in _IMAGES}
        criterion.curves.facts.update(made)
        write_statistics(curves, criterion.curves, criterion.seen, network)
        print(f'wrote {curves} and {statistics_path(curves)}')
    after = count_complexity(model, shape)
    if heal is not None:
        print()  # ends the line of the progress bar of the calibration
        healed = heal_model(model, dense, cfg, loader, heal, state_file)
        facts['heal'] = {**heal, **healed.facts()}
        print(healed)
    curves = getattr(criterion, 'curves', None)
    if curves is not None:
        facts['allocation'] = curves.facts['curves']  # what was asked for need not have been done
    path = write_slim(model, cfg, out_dir, facts, dataset, costs=(before, after), shape=shape)
    state_file.unlink(missing_ok=True)
    folder = Path(out_dir) / REPORT
    report_cut(folder, structure, full, criterion.importance, before, after, curves)
    page = report_run(path, path.with_suffix('.py'))
    _told(path, before, after)
    print(f'report: {page}')
    return path


def _costs(
    model: nn.Module,
    shape: tuple[int, int],
    budget: Budget,
    latency: str | Path | None,
    batch: int,
) -> Costs:
    """Costs of a network, with its times where the budget asks for them."""
    costs = model_costs(model, shape)
    if budget_kind(budget) == 'latency':
        with steps_bar() as progress:
            told = partial(progress, 'measuring times')
            costs.latency = model_latency(model, shape, latency, batch, told)
    return costs


def check_curves(curves: str | Path | None, budget: Budget | None, criterion: Criterion) -> None:
    """Check that a file of cost curves is for what is to be done.

    Raises:
        ValueError: There is no budget, the criterion has no curves, or it is no JSON file.
    """
    if curves is None:
        return
    if budget is None:
        raise ValueError(f'curves are for a budget: give one, or leave out curves={curves}')
    if not isinstance(criterion, OBS):
        raise ValueError(f"curves are of the criterion 'obs', got {type(criterion).__name__}")
    if Path(curves).suffix != '.json':
        raise ValueError(f'curves must be a .json file, got {curves}')


def _known(
    path: str | Path | None, model: nn.Module, criterion: Criterion, settings: Any
) -> tuple[Curves | None, Seen | None]:
    """What a file of cost curves has, where there is one already.

    Raises:
        ValueError: It was made otherwise than ``settings`` of the criterion ask for.
    """
    if path is None or not Path(path).exists():
        return None, None
    curves, seen = read_statistics(path, model)
    curves.check(require_units(model), str(path))
    made = {name: curves.facts.get(key) for name, key in _SETTINGS.items()}
    asked = {'metric': criterion.metric}
    if isinstance(settings, Mapping):  # 'measured' may have ended as 'predicted': only if named
        asked |= {name: settings[name] for name in _SETTINGS if name in settings}
    for name, value in asked.items():
        if value != made[name]:
            raise ValueError(
                f'{path} was made with {name}={made[name]!r}, and {value!r} is asked for: name '
                'another file'
            )
    print(f'{made["allocation"]} cost curves and moments from {path}: no image is read for them')
    return curves, seen


class FirstShown:
    """A data loader that shows a progress bar when it is gone over for the first time."""

    def __init__(self, loader: DataLoader):
        self.loader, self.shown = loader, False

    def __iter__(self) -> Iterator[Any]:
        if self.shown:
            return iter(self.loader)
        self.shown = True
        return track_iter_progress((iter(self.loader), len(self.loader)))


@contextmanager
def steps_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Shows steps of known number, one bar for each name."""
    columns = '{task.description}', BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar, tasks = Progress(*columns), {}

    def progress(name: str, done: int, number: int) -> None:
        if name not in tasks:
            bar.start()  # not before: MMEngine's bar is there while images stream by
            tasks[name] = bar.add_task(name, total=number)
        bar.update(tasks[name], completed=done)

    try:
        yield progress
    finally:
        bar.stop()


def _apply_masks(model: nn.Module, batches: Any, criterion: Criterion, policy: Sizes) -> None:
    """Set to zero what FIS and CRS do not keep (eq. 4)."""
    if not isinstance(criterion, MCF):
        raise ValueError(f"last_step is for the criterion 'mcf', got {type(criterion).__name__}")
    units = require_units(model)
    criterion.prepare(model)
    observers = criterion.observers(units, without_tokens(policy))
    seen = calibrate(model, batches, observers, tensor_forward(model), image_names)
    hold(held_masks(units, criterion.sparsify(units, policy, seen)))


def _check_state(state_file: Path, heal: Mapping[str, Any] | None, resume: bool) -> None:
    """Check that nobody's work is lost, and that what is asked for is there to go on with."""
    if resume and heal is None:
        raise ValueError('resume goes on with a healing: say the same heal as before')
    if state_file.is_file() and not resume:
        raise ValueError(
            f'{state_file} is the state of a healing that was interrupted: go on with resume '
            '(--resume) and the same settings, delete it, or write to another folder'
        )
    if resume and not state_file.is_file():
        print(f'no {state_file} yet: healing starts at its beginning')


def _told(path: Path, before: Complexity, after: Complexity) -> Path:
    print(
        f'\nparameters {before.params / 1e6:.3f} M -> {after.params / 1e6:.3f} M, '
        f'MACs {before.macs / 1e9:.3f} G -> {after.macs / 1e9:.3f} G\n'
        f'wrote {path}, {path.with_suffix(".py")} and {path.with_suffix(".md")}'
    )
    return path
