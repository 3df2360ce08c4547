"""Search for a policy on a budget, the work of ``tools/search.py``."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import nn

import mcf_mm
from mcf_mm.engine.calibration_data import (
    calibration_loader,
    evaluated_training_set,
    forward_and_loss,
    image_names,
    tensor_forward,
)
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model, model_costs, model_latency
from mcf_mm.engine.prune import FirstShown
from mcf_mm.engine.search_images import labels_of, loaded, shared_images
from mcf_mm.pruning import Costs, Criterion, Seen, Sizes, Units, build_criterion, calibrate
from mcf_mm.pruning.budget import Budget, budget_kind
from mcf_mm.pruning.compensation import check_biases, check_compensation, compensation_observers
from mcf_mm.pruning.policy import without_tokens
from mcf_mm.pruning.prune import check_criterion, check_parameters, check_tied, require_units
from mcf_mm.pruning.structure import check_seed, check_whole
from mcf_mm.search.evaluate import Evaluator, check_classifier, check_score
from mcf_mm.search.results import draw, write_policy, write_trials
from mcf_mm.search.samplers import check_sampler
from mcf_mm.search.shape import Shape
from mcf_mm.search.storage import StorageLost, default_storage, hidden, import_optuna
from mcf_mm.search.study import Search, Tried, best_of
from mcf_mm.weights.checkpoint import load_weights
from mcf_mm.weights.statistics import fingerprint


def search_checkpoint(
    cfg: Config,
    checkpoint: str,
    out_dir: str | Path,
    budget: Budget,
    trials: int = 200,
    dims: Iterable[str] | None = None,
    criterion: Any = 'obs',
    sampler: str = 'gp',
    score: str = 'cut',
    objective: str = 'accuracy',
    compensation: str | None = None,
    num_images: int | None = None,
    search_images: int | None = None,
    seed: int = 0,
    max_ratio: Mapping[str, float] | None = None,
    storage: str | None = None,
    study: str = 'mcf_mm',
    resume: bool = False,
    patience: float = 60,
    latency: str | Path | None = None,
) -> list[Tried]:
    """Search for the sizes that score best within a budget, and write them to ``policy.json``.

    Args:
        cfg: Config of the dense classifier, with a training set.
        checkpoint: Its weights.
        out_dir: Folder for ``policy.json``, ``trials.json``, pictures and ``study.db``.
        budget: See :func:`~mcf_mm.pruning.budget.parse_budget`.
        trials: Complete trials of the study in all. Defaults to 200.
        dims: Kinds that may be pruned. Defaults to heads, hidden units and tokens, where the
            network has them (the paper).
        criterion: What is important, see :func:`mcf_mm.pruning.prune`. Defaults to ``'obs'``.
        sampler: See :data:`mcf_mm.search.samplers.SAMPLERS`. Defaults to ``'gp'``.
        score: See :class:`mcf_mm.search.evaluate.Evaluator`. Defaults to ``'cut'``.
        objective: See :class:`mcf_mm.search.evaluate.Evaluator`. Defaults to ``'accuracy'``.
        compensation: See :func:`mcf_mm.pruning.prune`. Defaults to that of the criterion, and to
            ``'none'`` with ``score='masked'``.
        num_images: Calibration images. Defaults to 1024, or what ``search_images`` leave.
        search_images: Images to score on: those that come next in the random order of the training
            set. Defaults to 500, or half of the set.
        seed: Chooses images and proposals. Defaults to 0.
        max_ratio: Largest share to drop by kind. Defaults to :data:`mcf_mm.search.shape.CAPS`.
        storage: See :func:`mcf_mm.search.storage.open_storage`. Defaults to ``study.db`` in the
            folder.
        study: Name of the study in the storage. Defaults to ``'mcf_mm'``.
        resume: Go on with a study that is there, or work on it with others. Defaults to False.
        patience: Seconds to wait for a storage that does not answer. Defaults to 60.
        latency: JSON file of measured times, for a budget of latency.

    Returns:
        All complete trials.

    Raises:
        ImportError: Optuna or what it needs is missing.
        ValueError: An argument is out of range or does not fit the network, no policy meets the
            budget, there are too few images, or the study is of another search.
        StorageLost: The storage does not answer. Nothing is lost.
    """
    check_seed(seed)
    check_whole('trials', trials, 1)
    settings, criterion = criterion, build_criterion(criterion)
    if compensation is None:
        compensation = 'none' if score == 'masked' else criterion.compensation
    check_compensation(compensation)
    check_score(score, objective, compensation)
    if score == 'masked' and compensation != 'none':
        raise ValueError(f"score='masked' has no compensation, got {compensation!r}")
    import_optuna()
    check_sampler(sampler)
    model = build_model(cfg).to(get_device())
    check_classifier(model)
    units = require_units(model)
    for unit in units.every:
        if unit.is_pruned:
            raise ValueError(
                f'{unit.name} is pruned already, to {unit.sizes}: start from the dense network'
            )
    costs = _costs(model, input_shape(cfg), budget, latency)
    shape = Shape(units, costs, budget, dims, max_ratio, criterion.floors)
    full = {
        unit.name: {kind: n for kind, n in unit.sizes.items() if kind in shape.kinds}
        for unit in units.every
    }
    full = {name: own for name, own in full.items() if own}
    check_criterion(criterion, full)
    check_biases(units, shape.sizes(dict.fromkeys(shape.names, 0.5)), compensation)
    check_tied(model, full)
    load_weights(model, checkpoint)
    check_parameters(model)
    dataset = evaluated_training_set(cfg)
    num_images, search_images = shared_images(len(dataset), num_images, search_images)
    print(
        f'{num_images} of the {len(dataset)} training images are for calibration, the next '
        f'{search_images} of the same random order for scores (seed {seed})'
    )
    facts = {
        'network': fingerprint(model),
        'budget': budget if isinstance(budget, str) else dict(budget),
        'dims': shape.kinds,
        'max_ratio': shape.caps,
        'criterion': settings if isinstance(settings, str | Mapping) else repr(settings),
        'compensation': compensation,
        'score': score,
        'objective': objective,
        'dataset': len(dataset),
        'num_images': num_images,
        'search_images': search_images,
        'seed': seed,
        'sampler': sampler,
        'latency': None if costs.latency is None else costs.latency.dense,
        'version': mcf_mm.__version__,
    }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    url = default_storage(out_dir) if storage is None else storage
    again = f'run the same command with --resume to go on with {hidden(url)}'
    try:
        search = Search(url, study, facts, shape.names, out_dir, sampler, seed, resume, patience)
        known = search.tried()
        if known:
            print(f'{len(known)} trials are in {hidden(url)}; the search goes on behind them')
        if len(known) < trials:
            print('calibrating: a search that goes on does so again, with the same result')
            seen = _calibrated(model, cfg, units, full, criterion, compensation, num_images, seed)
            evaluate = _evaluator(
                model, cfg, criterion, seen, compensation, score, objective, num_images,
                search_images, seed,
            )  # fmt: skip
            dense = evaluate.dense()
            print(f'{objective} of the dense network on these {search_images}: {dense:.4g}')
        facts = {**facts, 'origin': str(checkpoint)}
        policy = out_dir / 'policy.json'
        with _bar(trials, shape, policy, facts) as told:
            tried = search.run(trials, lambda x: evaluate(shape.sizes(x)), told)
        running = search.running()
    except StorageLost as error:
        raise StorageLost(f'{error}. Nothing is lost: {again}') from error
    except KeyboardInterrupt:
        print(f'\ninterrupted: {again}')
        raise
    rows = write_trials(out_dir / 'trials.json', shape, tried)
    ylabel = f'{objective} on {search_images} images'
    pictures = draw(out_dir, search.study, rows, costs, ylabel)
    _print_result(shape, tried, policy, objective)
    print(f'wrote {policy}, trials.json and {", ".join(path.name for path in pictures)}')
    if running:
        print(
            f'{len(running)} trials are still run by {", ".join(sorted(set(running)))}; if a '
            f'worker dies, {again}'
        )
    return tried


def _costs(
    model: nn.Module, shape: tuple[int, int], budget: Budget, latency: str | Path | None
) -> Costs:
    costs = model_costs(model, shape)
    if budget_kind(budget) == 'latency':
        if latency is None or not Path(latency).is_file():
            raise ValueError(
                'a budget of latency needs a file of measured times, so that all workers go by '
                f'the same: measure with tools/prune.py --latency FILE first, got {latency}'
            )
        costs.latency = model_latency(model, shape, latency)
    elif latency is not None:
        raise ValueError(f'latency={latency} is for a budget of latency, got budget={budget}')
    return costs


def _calibrated(
    model: nn.Module,
    cfg: Config,
    units: Units,
    full: Sizes,
    criterion: Criterion,
    compensation: str,
    num_images: int,
    seed: int,
) -> Seen:
    """What the criterion and the compensation need, from one pass over the calibration images."""
    criterion.prepare(model)
    observers = criterion.observers(units, without_tokens(full))
    # Gradients keep the activations of a batch.
    felt = any(observer.needs_gradients for observer in observers)
    forward, loss = forward_and_loss(model, observers)
    observers += compensation_observers(units, full, compensation, observers)
    if not observers:
        return Seen({})
    loader = calibration_loader(cfg, num_images, seed, 16 if felt else 64)
    seen = calibrate(
        model, FirstShown(loader), observers, forward, image_names, loss=loss,
        labels=criterion.labels,
    )  # fmt: skip
    print()  # ends the line of MMEngine's progress bar
    return seen


def _evaluator(
    model: nn.Module,
    cfg: Config,
    criterion: Criterion,
    seen: Seen,
    compensation: str,
    score: str,
    objective: str,
    num_images: int,
    search_images: int,
    seed: int,
) -> Evaluator:
    loader = calibration_loader(cfg, search_images, seed, start=num_images)
    batches = loaded(loader)
    labels = labels_of(loader.dataset) if objective == 'accuracy' else None
    return Evaluator(
        model, batches, criterion, seen, labels, compensation, score, objective,
        tensor_forward(model),
    )  # fmt: skip


@contextmanager
def _bar(
    trials: int, shape: Shape, policy: Path, facts: Mapping[str, Any]
) -> Iterator[Callable[[list[Tried]], None]]:
    """Shows the trials that are done and the best, and writes its policy whenever it improves."""
    columns = '{task.description}', BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    written = None
    with Progress(*columns) as bar:
        task = bar.add_task('searching', total=trials)

        def told(tried: list[Tried]) -> None:
            nonlocal written
            best = best_of(tried)
            if best is not None and best != written:
                write_policy(policy, shape, best, facts)
                written = best
            name = 'searching' if best is None else f'best {best.score:.4g} (trial {best.place})'
            bar.update(task, completed=len(tried), description=name)

        yield told


def _print_result(shape: Shape, tried: list[Tried], policy: Path, objective: str) -> None:
    best = best_of(tried)
    cost, dense = shape.costs.of(shape.sizes(best.x)), shape.costs.of({})
    equal = next((one for one in tried if one.place == 0), None)
    told = '' if equal is None else f'; all units alike (trial 0): {equal.score:.4g}'
    print(
        f'best {objective} of {len(tried)} trials: {best.score:.4g} (trial {best.place}){told}\n'
        f'parameters {dense["params"] / 1e6:.3f} M -> {cost["params"] / 1e6:.3f} M, '
        f'MACs {dense["macs"] / 1e9:.3f} G -> {cost["macs"] / 1e9:.3f} G; '
        f'budget {shape.budget}: {cost[shape.what]:,} of {shape.wanted:,} {shape.what}'
    )
