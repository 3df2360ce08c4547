"""What is left of a network that is made small without labels: one table of many methods.

Prunes a classifier with each method, to equal cost, and reports its accuracy on images that no
method has seen. Results go to a JSON file, row by row; started again, it goes on where it was.
Rows of the closed form share one calibration and its cost curves for each seed, which are kept in
``work_dirs/bench``; their seconds are given as those of what is shared and those of the row. Times
are of the processor, all cores together.

    python tools/benchmarks/small_without_training.py \\
        configs/experiments/deit-tiny_imagenet-samples.py \\
        checkpoints/deit_tiny_in1k.safetensors --cfg-options \\
        test_dataloader.dataset.ann_file=report.txt --out work_dirs/small.json
    ... --rows 'all dimensions, measured$' --heal epochs=38     # healed as well

The READMEs' tables are made of it by ``tables.py`` beside this file.

Rows of torch-pruning need ``pip install -e '.[peers]'``; without it they are left out, with a line.
"""

import argparse
import copy
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from tables import read_results, table, write_results
from torch import nn

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.comparison.bench import Bench
from mcf_mm.comparison.peers import ADVICE, is_installed, torch_pruning
from mcf_mm.comparison.rows import LS, hidden_alone
from mcf_mm.engine.calibration_data import calibration_loader
from mcf_mm.engine.config import load_config
from mcf_mm.engine.heal import heal_model, parse_settings
from mcf_mm.pruning import Seen, find_units, within_budget
from mcf_mm.pruning.criteria.obs import OBS
from mcf_mm.pruning.curves import Curves


def methods(budget: str) -> dict[str, dict[str, Any]]:
    """Arguments of :func:`mcf_mm.prune` by row, at a budget.

    ``curves`` (not an argument of it) marks rows of the closed form: which curves tell where to
    cut, ``'equal'`` for the same share everywhere.
    """
    hidden = dict(budget=budget, kinds=['hidden'])
    rows: dict[str, dict[str, Any]] = {}
    if budget == MCF_BUDGET:
        for kind in ('none', 'mean', LS, 'sequential'):
            rows[f'MCF p = 0.4, {kind}'] = dict(criterion='mcf', ratios=0.4, compensation=kind)
        rows |= {name: own | hidden for name, own in hidden_alone().items()}
        for name in ('Taylor', 'Hessian'):
            rows[f'hidden alone, torch-pruning {name}'] = dict(peer=name)
        rows['hidden alone, OBS, equal sizes'] = dict(curves='equal', **hidden)
    for curves in ('predicted', 'measured'):
        rows[f'hidden alone, OBS, {curves}'] = dict(curves=curves, **hidden)
        for kinds in (['hidden', 'v'], ['hidden', 'v', 'qk'], ALL[:-1], ALL):
            name = 'all but inputs' if kinds == ALL[:-1] else ' + '.join(kinds)
            name = 'all dimensions' if kinds == ALL else name
            rows[f'{name}, {curves}'] = dict(curves=curves, budget=budget, kinds=kinds)
    if budget == MCF_BUDGET:
        rows['all dimensions, measured, sequential'] = dict(
            curves='measured', budget=budget, kinds=ALL, compensation='sequential'
        )
    return rows


ALL = ['hidden', 'v', 'qk', 'heads', 'inputs']
#: Parameters of DeiT-Tiny after MCF with p = 0.4, and two budgets of MACs.
MCF_BUDGET = 'params=3869416'
BUDGETS = (MCF_BUDGET, 'macs=0.890e9', 'macs=0.75e9')


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    results: dict[str, dict] = read_results(out)
    bench = Small(args)
    for budget in args.budgets:
        for name, arguments in methods(budget).items():
            if not re.search(args.rows, name):
                continue
            for seed in range(args.seeds):
                key = f'{budget} | {name} | seed {seed}'
                if args.label:
                    key += f' | {args.label}'
                if args.heal:
                    key += f' | healed {args.heal}'
                if key not in results:
                    if 'peer' in arguments and not is_installed():
                        print(f'left out: {key}: {ADVICE}')
                        continue
                    print(f'\n{key}')
                    results[key] = bench.row(arguments, seed, key)
                    write_results(out, results)
                    print(f'{key}: {results[key]}')
    if 'dense' not in results:
        results['dense'] = bench.dense_row()
        write_results(out, results)
    print(table(results))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a classifier')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--out', required=True, help='JSON file of results')
    parser.add_argument('--rows', default='', help='regular expression of rows to run')
    parser.add_argument('--budgets', nargs='+', default=[MCF_BUDGET], help=f'such as {BUDGETS}')
    parser.add_argument('--images', type=int, default=500, help='calibration images')
    parser.add_argument('--seeds', type=int, default=1, help='choices of calibration images')
    parser.add_argument(
        '--split',
        action='store_true',
        help='to choose settings: calibrate on one half of the calibration images, report on the '
        'other; the images to report on are not read',
    )
    parser.add_argument('--label', help='what is told of these rows, such as other images')
    parser.add_argument(
        '--heal', metavar='epochs=N,...', help='heal after the cut, as prune.py does'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return parser.parse_args()


@dataclass
class Statistics:
    """What rows of the closed form share."""

    seen: Seen
    predicted: Curves
    measured: Curves
    seconds: float


class Small(Bench):
    """A bench whose rows of the closed form share statistics."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        cfg = load_config(args.config, 'work_dirs/bench', args.cfg_options)
        super().__init__(cfg, args.checkpoint, args.images, args.split, keep=True)
        self._statistics: dict[int, Statistics] = {}

    def dense_row(self) -> dict:
        return timed(self.measured(self.dense), 0.0)

    def row(self, arguments: dict[str, Any], seed: int, key: str) -> dict:
        model, loader = copy.deepcopy(self.dense), self.loader(seed)
        arguments, shared = dict(arguments), 0.0
        if 'curves' in arguments:
            shared = self.statistics(seed).seconds
        start = time.process_time()
        if 'peer' in arguments:
            torch_pruning(model, loader, arguments['peer'], self.shape)
        else:
            self.prune(model, loader, arguments, seed)
        seconds = time.process_time() - start
        row = timed(self.measured(model), seconds) | {'shared_seconds': shared}
        if self.args.heal:
            settings = parse_settings(self.args.heal)
            state = Path('work_dirs/bench') / (re.sub(r'\W+', '_', key) + '.pt')
            state.parent.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            loader = calibration_loader(self.cfg, self.args.images, seed, 16)
            healed = heal_model(model, self.dense, self.cfg, loader, settings, state)
            minutes = (time.process_time() - start) / 60
            state.unlink(missing_ok=True)
            one_shot = row
            row = timed(self.measured(model), one_shot['seconds'])
            row |= {'shared_seconds': shared, 'one_shot': one_shot['top1']}
            row |= {'heal_images': healed.images, 'heal_minutes': round(minutes, 1)}
            row['heal_wall_minutes'] = round(healed.seconds / 60, 1)
        return row

    def statistics(self, seed: int) -> Statistics:
        """Moments and cost curves of all kinds, made once for each seed."""
        label = re.sub(r'\W+', '_', f'{self.args.images} {self.args.label or ""} seed {seed}')
        file = Path('work_dirs/bench') / f'statistics_{label}.pt'
        if seed not in self._statistics and file.is_file():
            self._statistics = {seed: torch.load(file, weights_only=False)}
        if seed not in self._statistics:
            start = time.process_time()
            model, criterion = copy.deepcopy(self.dense), OBS()
            self.call(model, self.loader(seed), criterion=criterion, budget='params=90%', kinds=ALL)
            units = find_units(self.dense)
            seen, measured = criterion.seen, criterion.curves
            predicted = OBS().predict_curves(units, units.sizes, seen)
            seconds = round(time.process_time() - start, 1)
            self._statistics = {seed: Statistics(seen, predicted, measured, seconds)}
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._statistics[seed], file)
        return self._statistics[seed]

    def prune(self, model: nn.Module, loader: Any, arguments: dict[str, Any], seed: int) -> None:
        """Prune as a row says."""
        curves = arguments.pop('curves', None)
        if curves is not None:
            known = self.statistics(seed)
            arguments |= dict(criterion='obs', seen=known.seen)
            if curves == 'equal':
                budget, kinds = arguments.pop('budget'), arguments.pop('kinds')
                arguments['sizes'] = within_budget(find_units(model), self.costs, budget, kinds)
            else:
                arguments['curves'] = getattr(known, curves)
        self.call(model, loader, **arguments)


def timed(row: dict, seconds: float) -> dict:
    """A row with the seconds that it took, in the order of the file of results."""
    return {
        'params': row['params'],
        'macs': row['macs'],
        'seconds': round(seconds, 1),
        'top1': row['top1'],
        'images': row['images'],
    }


if __name__ == '__main__':
    main()
