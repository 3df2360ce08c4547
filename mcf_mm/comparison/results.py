"""What a comparison found: a JSON file, a table in Markdown, and a picture."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mcf_mm.analysis.plots import save_figure
from mcf_mm.files import whole_file, write_json

#: Where accuracies stand in a row.
SCORES = {'one_shot': 'one shot', 'healed': 'healed', 'trained': 'trained'}
#: How they are drawn.
MARKERS = {'one_shot': ('o', 'circle'), 'healed': ('s', 'square'), 'trained': ('^', 'triangle')}
#: Share of a budget that a row may miss it by before the table says so.
MISSED = 0.005
GIB = 2**30


def score(row: dict[str, Any], stage: str) -> float | None:
    """Top-1 of a row after a stage; None where there is none."""
    return row.get(stage, {}).get('top1')


def last(row: dict[str, Any]) -> float:
    """Top-1 after the last stage that the row has come to."""
    found = [score(row, stage) for stage in SCORES]
    return next((value for value in reversed(found) if value is not None), -1.0)


def ranked(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by name, the most accurate after the last stage first."""
    return dict(sorted(results['rows'].items(), key=lambda item: -last(item[1])))


def cost(row: dict[str, Any]) -> dict[str, Any]:
    """Parameters and MACs of a row, wherever they were counted."""
    return row.get('one_shot') or row.get('trained') or {}


def markdown(results: dict[str, Any]) -> str:
    """The table of a comparison, and what must be known to read it."""
    facts, stages = results['facts'], [s for s in SCORES if any(s in r for r in _rows(results))]
    gpu = any(row.get('one_shot', {}).get('gpu_peak_bytes') for row in _rows(results))
    head = ['network', 'parameters', 'MACs', *(f'top-1 {SCORES[stage]}' for stage in stages)]
    head += ['images/s', 'of dense', 'memory of inference', 'seconds to prune', 'memory of pruning']
    lines = [f'| {" | ".join(head)} |', '| --- ' * len(head) + '|']
    for name, row in ranked(results).items():
        own, shot, fast = cost(row), row.get('one_shot', {}), row.get('speed', {})
        cells = [
            name + _missed(own, results),
            f'{own["params"] / 1e6:.3f} M' if own else '',
            f'{own["macs"] / 1e9:.3f} G' if own else '',
            *(_number(score(row, stage), '.1f') for stage in stages),
            _number(fast.get('images_per_second'), ',.1f'),
            f'{fast["images_per_second"] / fast["dense_images_per_second"]:.2f}' if fast else '',
            _gib(fast.get('inference_peak_bytes')),
            _number(shot.get('seconds'), '.1f'),
            _gib(shot.get('gpu_peak_bytes' if gpu else 'peak_bytes')),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    counts = facts['counts']
    where = 'tensors on the GPU' if gpu else 'a process of its own, libraries included'
    notes = [
        f'Budget {facts["budget"]}. Calibrated on {counts["calibration"]} images of the training '
        f'set, top-1 on {counts["report"]} of the test set, none in both; seed {facts["seed"]}.',
        f'Images/s in turn with the dense network, batch {facts["batch"]}, {facts["device"]}; '
        f'memory is the peak of {where}.',
    ]
    parts = (part for row in _rows(results) for part in row.values())
    if not gpu and any(part.get('peak_of_all') for part in parts):
        notes.append(
            'This system cannot begin a peak of memory anew: loading and counting are in it too.'
        )
    if facts.get('heal'):
        notes.append(f'Healed: {json.dumps(facts["heal"])}, on the calibration images.')
    if facts.get('epochs'):
        notes.append(
            f'Trained from the one-shot network: {facts["epochs"]} epochs of '
            f'{counts["training"]} images each, the dense network too.'
        )
    notes += facts['notes']
    for title, key in (('Left out', 'left_out'), ('Failed', 'failed')):
        notes += [f'{title}: {name}: {reason}' for name, reason in results[key].items()]
    return '\n'.join([*lines, '', *(f'- {" ".join(note.split())}' for note in notes)]) + '\n'


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    return list(results['rows'].values())


def _missed(own: dict[str, Any], results: dict[str, Any]) -> str:
    """By how much a row misses the budget, where it does; not of the dense network."""
    what, wanted, dense = (results['facts'][key] for key in ('what', 'wanted', 'dense'))
    if not own or own[what] == dense:
        return ''
    share = own[what] / wanted - 1
    return f' (budget missed by {100 * share:+.1f} %)' if abs(share) > MISSED else ''


def _number(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


def _gib(value: int | None) -> str:
    return '' if value is None else f'{value / GIB:.2f} GiB'


def accuracy_figure(results: dict[str, Any]) -> Figure:
    """Draw top-1 over MACs and over parameters, a point for each row and stage."""
    rows = ranked(results)
    figure = Figure(figsize=(13, 0.22 * len(rows) + 3.6), layout='constrained')
    columns = zip(
        figure.subplots(1, 2, sharey=True), ('macs', 'params'), ('MACs (G)', 'parameters (M)'),
        strict=True,
    )  # fmt: skip
    shown = [stage for stage in SCORES if any(stage in row for row in rows.values())]
    for axes, key, title in columns:
        unit = 1e9 if key == 'macs' else 1e6
        for number, (name, row) in enumerate(rows.items()):
            colour = 'black' if name == 'dense' else f'C{number % 10}'
            own = [stage for stage in shown if score(row, stage) is not None]
            for stage in own:
                # Twenty rows have ten colours: the second ten are hollow.
                axes.plot(
                    cost(row)[key] / unit, score(row, stage), MARKERS[stage][0], color=colour,
                    fillstyle='full' if number < 10 else 'none',
                    label=name if stage == own[0] else None,
                )  # fmt: skip
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    told = ', '.join(f'{MARKERS[stage][1]}: {SCORES[stage]}' for stage in shown)
    figure.axes[0].set_ylabel(f'top-1 ({told})')
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper', fontsize='small')
    return figure


def write(folder: Path, results: dict[str, Any], draw: bool = False) -> None:
    """Write ``results.json`` and ``table.md``, with ``draw`` also ``accuracy.png``."""
    write_json(folder / 'results.json', results, indent=1)
    if results['rows']:
        with whole_file(folder / 'table.md') as partial:
            partial.write_text(markdown(results), encoding='utf-8')
        if draw:
            save_figure(accuracy_figure(results), folder / 'accuracy.png')
