"""Searched policies against uniform ones, chance and cost curves: one table at equal MACs.

Calibration, search and report see different photos: the first two share the training set of the
config, the report is its test set. What is complete is not done again; a search that was stopped
goes on. Results go to a JSON file, row by row; the table in configs/multi_dim/README.md is written
by ``tables.py`` beside this file. Seconds are of the processor, all cores together.

    OMP_NUM_THREADS=1 python tools/benchmarks/policy_search.py \\
        configs/experiments/deit-tiny_imagenet-samples.py checkpoints/deit_tiny_in1k.safetensors \\
        --cfg-options test_dataloader.dataset.ann_file=report.txt --seeds 3
"""

import argparse
import copy
import re
import time
from pathlib import Path
from statistics import mean
from typing import Any

from mmengine.config import DictAction
from small_without_training import timed
from tables import read_results, searches_table, table, write_results

from mcf_mm.comparison.bench import Bench
from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import model_costs
from mcf_mm.engine.search import search_checkpoint
from mcf_mm.pruning import find_units, read_policy, within_budget
from mcf_mm.pruning.budget import parse_budget
from mcf_mm.search.shape import Shape

RESULTS = Path(__file__).resolve().parents[2] / 'configs/multi_dim/results/policy_search.json'
ALL = ['heads', 'hidden', 'qk', 'v']
#: Searches go by the divergence from the dense network: 200 labels tell too little of networks that
#: get one photo in ten right.
PAPER = dict(criterion='hsic', compensation='none')
SOLVED = dict(criterion='obs', compensation='least_squares')
MCF = dict(criterion='mcf', compensation='least_squares', dims=['inputs', 'hidden'])
#: Rows by name: what is searched, by which sampler; without a sampler all units drop alike. Rows
#: that end in three seeds are those that chance decides.
ROWS: dict[str, dict[str, Any]] = {
    'HSIC, uniform': dict(PAPER),
    'HSIC, GP': dict(PAPER, sampler='gp'),
    'HSIC, GP by top-1': dict(PAPER, sampler='gp', objective='accuracy'),
    'HSIC, TPE': dict(PAPER, sampler='tpe'),
    'HSIC, random': dict(PAPER, sampler='random'),
    'HSIC, no tokens, uniform': dict(PAPER, dims=['heads', 'hidden']),
    'HSIC, no tokens, GP': dict(PAPER, dims=['heads', 'hidden'], sampler='gp'),
    'HSIC, least squares, uniform': dict(PAPER, compensation='least_squares'),
    'HSIC, least squares, GP': dict(PAPER, compensation='least_squares', sampler='gp'),
    'HSIC, least squares, TPE': dict(PAPER, compensation='least_squares', sampler='tpe'),
    'HSIC, least squares, random': dict(PAPER, compensation='least_squares', sampler='random'),
    'MCF, uniform': dict(MCF),
    'MCF, equal ratios': dict(MCF, equal=True),  # one p for inputs and hidden units, as published
    'MCF, GP': dict(MCF, sampler='gp'),
    'OBS, uniform': dict(SOLVED, dims=[*ALL, 'tokens']),
    'OBS, GP': dict(SOLVED, dims=[*ALL, 'tokens'], sampler='gp'),
    'OBS, cost curves, no tokens': dict(SOLVED, curves=0.0),
    'OBS, cost curves, tokens weighed as well': dict(SOLVED, curves='tokens'),
    'OBS, cost curves, a tenth of the tokens first': dict(SOLVED, curves=0.1),
    'OBS, cost curves, a fifth of the tokens first': dict(SOLVED, curves=0.2),
    'OBS, cost curves, three tenths of the tokens first': dict(SOLVED, curves=0.3),
}


def main() -> None:
    args = parse_args()
    results = read_results(args.results)
    cfg = load_config(args.config, 'work_dirs/bench', args.cfg_options)
    bench = Bench(cfg, args.checkpoint, args.num_images, keep=True)
    for budget in args.budgets:
        for name, row in ROWS.items():
            if not re.search(args.rows, name):
                continue
            for seed in range(args.seeds if 'sampler' in row else 1):
                key = f'{budget} | {name} | seed {seed}'
                if key not in results:
                    print(f'\n{key}')
                    results[key] = done(bench, args, budget, row, seed, key)
                    write_results(args.results, results)
                    print(f'{key}: {results[key]}')
    if 'dense' not in results:
        results['dense'] = timed(bench.measured(bench.dense), 0.0) | {'shared_seconds': 0.0}
        write_results(args.results, results)
    print(table(results))
    print(searches_table(results))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a classifier')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--results', type=Path, default=RESULTS, help='JSON file of results')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/policy_search'))
    parser.add_argument('--rows', default='', help='regular expression of rows to run')
    parser.add_argument('--budgets', nargs='+', default=['macs=60%'])
    parser.add_argument('--trials', type=int, default=60)
    parser.add_argument('--seeds', type=int, default=1, help='of the rows that search')
    parser.add_argument('--num-images', type=int, default=300, help='calibration images')
    parser.add_argument('--search-images', type=int, default=200)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    return parser.parse_args()


def done(
    bench: Bench, args: argparse.Namespace, budget: str, row: dict[str, Any], seed: int, key: str
) -> dict[str, Any]:
    """One row: the policy is found, the network pruned by it and reported on."""
    model, extra, start = copy.deepcopy(bench.dense), {}, time.process_time()
    units = find_units(model)
    if 'curves' in row:
        by_curves(bench, model, budget, row['curves'])
    else:
        if 'sampler' in row:
            sizes, extra = searched(bench, args, budget, row, seed, key)
        elif 'equal' in row:
            sizes = within_budget(units, bench.costs, budget, row['dims'])
        else:
            shape = Shape(units, bench.costs, budget, row.get('dims'))
            sizes = shape.sizes(dict.fromkeys(shape.names, 0.5))
        settings = dict(criterion=row['criterion'], compensation=row['compensation'])
        bench.call(model, bench.loader(seed), sizes=sizes, **settings)
    seconds = time.process_time() - start
    return timed(bench.measured(model), seconds) | {'shared_seconds': 0.0} | extra


def searched(
    bench: Bench, args: argparse.Namespace, budget: str, row: dict[str, Any], seed: int, key: str
) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """The best policy of a search, and how it went."""
    out = args.out / re.sub(r'\W+', '_', key)
    settings = {name: value for name, value in row.items() if name != 'sampler'}
    settings.setdefault('objective', 'divergence')
    tried = search_checkpoint(
        bench.cfg, args.checkpoint, out, budget, args.trials, sampler=row['sampler'], seed=seed,
        num_images=args.num_images, search_images=args.search_images,
        resume=(out / 'study.db').is_file(), **settings,
    )  # fmt: skip
    scores = [one.score for one in tried]
    best = [round(max(scores[:number]), 2) for number in range(1, len(scores) + 1)]
    facts = {'trials': len(scores), 'mean_score': round(mean(scores), 2), 'best_so_far': best}
    return read_policy(out / 'policy.json'), facts


def by_curves(bench: Bench, model: Any, budget: str, ratio: float | str) -> None:
    """Drop a share of the tokens at each place, then cut the rest to the budget by cost curves.

    With ``'tokens'`` in place of a share the curves choose it.
    """
    kinds = [*ALL, 'tokens'] if ratio == 'tokens' else ALL
    if ratio and ratio != 'tokens':
        bench.call(model, [], criterion='magnitude', ratios=dict(tokens=ratio))
    costs = model_costs(model, bench.shape)
    what, wanted = parse_budget(budget, bench.costs)
    own = bench.costs
    bench.costs = costs
    try:
        bench.call(
            model, bench.loader(0), criterion='obs', budget=f'{what}={round(wanted)}', kinds=kinds
        )
    finally:
        bench.costs = own


if __name__ == '__main__':
    main()
