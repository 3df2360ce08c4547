"""YOLOS-Ti on facemask_coco from the dense and from the pruned DeiT-Tiny: trains, compares, draws.

python tools/benchmarks/facemask.py --config 2cpu-24e                  # seed 0, two CPU cores
python tools/benchmarks/facemask.py --config 1xb8-300e --seeds 0 1 2   # one GPU

What is complete is not trained again and what was stopped goes on. Needs the data and the weights
of tools/prepare_real_data.py and the pruned backbone in work_dirs/photos/least_squares
(configs/mcf/README.md makes it).
"""

import argparse
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from runs import METRICS, ROOT, last_scores, train

from mcf_mm.analysis.plots import save_figure
from mcf_mm.analysis.throughput import compare
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model

NETWORKS = {'dense': 'yolos_deit', 'pruned': 'yolos_mcf-deit'}


def draw(path: Path, logs: dict[str, list[list[dict]]]) -> None:
    """Loss and AP50 by epoch, a line for each run."""
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    for axes, key in zip(figure.subplots(1, 2), ('loss', 'coco/bbox_mAP_50'), strict=True):
        for (name, runs), colour in zip(logs.items(), ('0.4', 'tab:blue'), strict=True):
            for number, rows in enumerate(runs):
                points = {}
                for row in rows:
                    if key in row:
                        # Evaluations are logged by epoch, losses many times in each.
                        points.setdefault(row.get('epoch', row['step']), []).append(row[key])
                label = name if number == 0 else None
                axes.plot(
                    list(points), [mean(v) for v in points.values()], color=colour, label=label
                )
        axes.set_xlabel('epoch')
        axes.set_title(key)
        axes.legend()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', choices=('2cpu-24e', '1xb8-300e'), default='2cpu-24e')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/facemask'))
    args = parser.parse_args()

    configs = {
        name: ROOT / f'configs/experiments/{prefix}-tiny_{args.config}_facemask.py'
        for name, prefix in NETWORKS.items()
    }
    logs = {
        name: [
            train(config, args.out / f'{args.config}_{name}_seed{seed}', seed)
            for seed in args.seeds
        ]
        for name, config in configs.items()
    }
    draw(args.out / f'{args.config}.png', logs)

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    built = {name: Config.fromfile(config) for name, config in configs.items()}
    shape = input_shape(built['dense'])
    speeds = compare(
        {name: build_model(config).to(device) for name, config in built.items()},
        shape,
        batch_size=8,
    ).networks
    rows = {}
    for name, runs in logs.items():
        scores = [last_scores(rows) for rows in runs]
        rows[name] = {label: [score[label] for score in scores] for label in METRICS}
    table = Table(title=f'{args.config}, seeds {args.seeds}, {shape[0]} x {shape[1]} on {device}')
    for column in ('backbone', *METRICS, 'params (M)', 'MACs (G)', 'images/s'):
        table.add_column(column, justify='left' if column == 'backbone' else 'right')
    for name, scores in rows.items():
        cells = [' '.join(f'{value:.3f}' for value in values) for values in scores.values()]
        speed = speeds[name]
        cells += [f'{speed.params / 1e6:.3f}', f'{speed.macs / 1e9:.3f}']
        table.add_row(name, *cells, f'{speed.images_per_second:.1f}')
    Console().print(table)


if __name__ == '__main__':
    main()
