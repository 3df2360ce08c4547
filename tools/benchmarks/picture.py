"""Draws the README's picture from the file of results: what is left at equal parameters.

python tools/benchmarks/picture.py
"""

import json
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use('svg')
# The same file for the same results.
matplotlib.rcParams['svg.hashsalt'] = 'mcf_mm'
matplotlib.rcParams['svg.fonttype'] = 'none'
matplotlib.rcParams['font.size'] = 10

from matplotlib import pyplot  # noqa: E402

from mcf_mm.files import whole_file  # noqa: E402

RESULTS = Path(__file__).resolve().parents[2] / 'configs/mcf/results/small_without_training.json'
BUDGET = 'params=3869416'
#: Rows of the results from best to worst, their names in the picture, and whose they are.
ROWS = {
    'all dimensions, measured': ('closed form, all dimensions', 'ours'),
    'hidden alone, OBS, predicted': ('closed form, hidden units', 'ours'),
    'hidden alone, FIS': ('FIS, hidden units, least squares', 'ours'),
    'MCF p = 0.4, sequential': ('MCF, sequential solves', 'ours'),
    'hidden alone, torch-pruning Hessian': ('torch-pruning, Hessian', 'others'),
    'hidden alone, VBP, mean': ('VBP', 'others'),
    'MCF p = 0.4, least_squares': ('MCF, least squares', 'ours'),
    'hidden alone, torch-pruning Taylor': ('torch-pruning, Taylor', 'others'),
    'MCF p = 0.4, none': ('MCF, as published', 'others'),
}
COLOURS = {'ours': '#2f6fab', 'others': '#9aa5b1'}


def main() -> None:
    results = json.loads(RESULTS.read_text())
    names, values, colours = [], [], []
    for row, (name, whose) in ROWS.items():
        keys = [f'{BUDGET} | {row} | seed {seed}' for seed in range(3)]
        names.append(name)
        values.append(mean(results[key]['top1'] for key in keys if key in results))
        colours.append(COLOURS[whose])
    if values != sorted(values, reverse=True):
        raise SystemExit(f'error: rows are not from best to worst: {values}')
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout='constrained')
    figure.patch.set_facecolor('white')
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, fmt='%.1f', padding=3)
    dense = results['dense']['top1']
    axes.axvline(dense, color='black', linestyle='--', linewidth=1)
    axes.text(dense - 1, len(names) - 1, f'dense {dense:.1f}', ha='right', va='center')
    axes.set_xlim(0, 90)
    axes.invert_yaxis()
    axes.set_xlabel('top-1 in %, DeiT-Tiny cut from 5.717 M to 3.869 M parameters, no training')
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    out = RESULTS.with_suffix('.svg')
    with whole_file(out) as partial:
        figure.savefig(partial, format='svg', metadata={'Date': None})
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
