"""What a search leaves: the best policy, a table of all trials, and pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcf_mm.files import whole_file, write_json
from mcf_mm.pruning.costs import Costs
from mcf_mm.search.shape import Shape
from mcf_mm.search.study import Tried


def write_policy(path: str | Path, shape: Shape, best: Tried, facts: Mapping[str, Any]) -> None:
    """Write a policy that :func:`~mcf_mm.pruning.policy.read_policy` reads, whole or not at all.

    Args:
        path: JSON file.
        shape: Of the search.
        best: The trial.
        facts: What the search was of, written under ``search``.
    """
    sizes = shape.sizes(best.x)
    content = {
        'sizes': sizes,
        'score': best.score,
        'trial': best.place,
        'cost': shape.costs.of(sizes),
        'dense': shape.costs.of({}),
        'search': dict(facts),
    }
    write_json(path, content, indent=1)


def write_trials(path: str | Path, shape: Shape, tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Write all trials to a JSON file: ``trial``, ``score``, ``params``, ``macs``, ``x``.

    Returns:
        What was written.
    """
    rows = [
        {'trial': one.place, 'score': one.score, **shape.costs.of(shape.sizes(one.x)), 'x': one.x}
        for one in tried
    ]
    write_json(path, rows, indent=1)
    return rows


def draw(
    out_dir: str | Path,
    study: Any,
    rows: Sequence[Mapping[str, Any]],
    costs: Costs,
    ylabel: str,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draw ``history.png``, ``importances.png``, ``slices.png`` and ``pareto.png``.

    Args:
        out_dir: Folder.
        study: Of Optuna's.
        rows: What :func:`write_trials` gave.
        costs: Of the dense network.
        ylabel: What the score is.
        say: Prints a line where a picture cannot be drawn.

    Returns:
        The files.
    """
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    before = pyplot.get_backend()
    pyplot.switch_backend('agg')
    paths = []
    try:
        for name, plot in (
            ('history', plots.plot_optimization_history),
            ('importances', plots.plot_param_importances),
            ('slices', plots.plot_slice),
        ):
            if len(rows) < 2:
                say(f'no {name}.png: that takes two trials or more')
                continue
            try:
                axes = plot(study)
            except (ValueError, RuntimeError) as error:
                say(f'no {name}.png: {error}')
                pyplot.close('all')
                continue
            figure = axes.flat[0].figure if isinstance(axes, np.ndarray) else axes.figure
            paths.append(_saved(figure, Path(out_dir) / f'{name}.png'))
        paths.append(_saved(_pareto(pyplot, rows, costs, ylabel), Path(out_dir) / 'pareto.png'))
    finally:
        pyplot.close('all')
        pyplot.switch_backend(before)
    return paths


def _pareto(pyplot: Any, rows: Sequence[Mapping[str, Any]], costs: Costs, ylabel: str) -> Any:
    """Scores over MACs and parameters; a line through those that none beats in both."""
    figure, sides = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    dense = costs.of({})
    units = (('macs', 'MACs [G]', 1e9), ('params', 'parameters [M]', 1e6))
    for axes, (key, label, unit) in zip(sides, units, strict=True):
        axes.scatter([row[key] / unit for row in rows], [row['score'] for row in rows], s=14)
        front: list[Mapping[str, Any]] = []
        for row in sorted(rows, key=lambda row: (row[key], -row['score'])):
            if not front or row['score'] > front[-1]['score']:
                front.append(row)
        axes.step(
            [row[key] / unit for row in front],
            [row['score'] for row in front],
            where='post',
            color='tab:orange',
        )
        axes.set_xlabel(f'{label}, dense {dense[key] / unit:.3f}')
        axes.ticklabel_format(useOffset=False)
    sides[0].set_ylabel(ylabel)
    return figure


def _saved(figure: Any, path: Path) -> Path:
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=100)
    return path
