"""Searches for the policy that scores best within a budget: how much of which unit is dropped.

Each trial prunes the network for a moment and scores it on training images that calibration does
not see. Writes ``policy.json`` to the output folder, for ``tools/prune.py --sizes`` or for
``PruningHook(sizes='policy.json')``, with a table and pictures of all trials.

    python tools/search.py CONFIG CHECKPOINT --budget macs=60% --out work_dirs/search
    python tools/search.py CONFIG CHECKPOINT --budget macs=60% --dims heads,hidden,qk,v \\
        --criterion obs --objective divergence --trials 100 --out work_dirs/search
    python tools/search.py CONFIG CHECKPOINT --budget macs=60% --out work_dirs/search --resume

An interrupted search goes on with --resume. Several processes work on one search where they have
the same storage and all but the first are started with --resume.
"""

import argparse
import json
import sys
from pathlib import Path

from mmengine.config import DictAction

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.search import search_checkpoint
from mcf_mm.pruning.compensation import COMPENSATIONS
from mcf_mm.pruning.criteria import CRITERIA
from mcf_mm.search.evaluate import OBJECTIVES, SCORES
from mcf_mm.search.samplers import SAMPLERS
from mcf_mm.search.storage import StorageLost
from mcf_mm.shipped import command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the dense network')
    parser.add_argument('checkpoint', help='its weights, with the names of mmpretrain')
    parser.add_argument('--out', required=True, type=Path, help='folder for the result')
    parser.add_argument(
        '--budget',
        required=True,
        metavar='WHAT=NUMBER',
        help='what the network may cost: params=3869416, macs=60%% or latency=70%%, met to the '
        'last element by each trial',
    )
    parser.add_argument(
        '--trials', type=int, default=200, help='complete trials of the study in all'
    )
    parser.add_argument(
        '--dims',
        metavar='KIND,...',
        help='what may be pruned: heads,hidden,tokens,qk,v,inputs (default: the first three, where '
        'the network has them)',
    )
    parser.add_argument(
        '--criterion', choices=tuple(CRITERIA), default='obs', help='what is important'
    )
    parser.add_argument(
        '--compensation',
        choices=[name for name in COMPENSATIONS if name != 'sequential'],
        help='fold what is dropped into what stays (default: least_squares with obs, otherwise '
        'none)',
    )
    parser.add_argument(
        '--sampler',
        choices=SAMPLERS,
        default='gp',
        help='what proposes trials: a Gaussian process, a tree-structured Parzen estimator, chance '
        'on the budget, or the Gaussian process of BoTorch',
    )
    parser.add_argument(
        '--score',
        choices=SCORES,
        default='cut',
        help='cut and compensate for each trial, or multiply with 0 alone as the paper',
    )
    parser.add_argument(
        '--objective',
        choices=OBJECTIVES,
        default='accuracy',
        help='top-1 with the labels, or how near the predictions of the dense network, without',
    )
    parser.add_argument(
        '--num-images', type=int, help='calibration images (default: 1024, or what there is)'
    )
    parser.add_argument(
        '--search-images', type=int, help='images to score on (default: 500, or half of the set)'
    )
    parser.add_argument('--seed', type=int, default=0, help='chooses images and proposals')
    parser.add_argument(
        '--max-ratio',
        metavar='KIND=RATIO,...',
        help='largest share to drop of a kind (default: 0.5 of heads, hidden and tokens, 0.9 of '
        'the others)',
    )
    parser.add_argument(
        '--storage',
        metavar='URL',
        help='database of the study, such as postgresql://user@host/name, or a journal file '
        'NAME.log (default: study.db in the output folder)',
    )
    parser.add_argument(
        '--study', default='mcf_mm', metavar='NAME', help='of the study, in a database with several'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with a study that is there, or work on it together with other processes',
    )
    parser.add_argument(
        '--patience',
        type=float,
        default=60,
        metavar='SECONDS',
        help='how long to wait for a database that does not answer',
    )
    parser.add_argument(
        '--latency', metavar='FILE', help='measured times, for --budget latency=70%%'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings'
    )
    return parser.parse_args()


def read_max_ratio(text: str | None) -> dict[str, float]:
    """Caps by kind.

    Raises:
        ValueError: It is none of ``KIND=RATIO,...``.
    """
    caps: dict[str, float] = {}
    for part in [] if text is None else text.split(','):
        kind, _, value = part.partition('=')
        try:
            if kind.strip() in caps:
                raise ValueError
            caps[kind.strip()] = float(value)
        except ValueError:
            raise ValueError(
                f'--max-ratio must be KIND=RATIO,... with each kind once, got {text!r}'
            ) from None
    return caps


def next_command(args: argparse.Namespace) -> str:
    """What to run to prune by the policy."""
    facts = json.loads((args.out / 'policy.json').read_text(encoding='utf-8'))['search']
    return (
        f'next: {command("prune")} {args.config} {args.checkpoint} --sizes '
        f'{args.out / "policy.json"} --criterion {args.criterion} --compensation '
        f'{facts["compensation"]} --num-images {facts["num_images"]} --seed {facts["seed"]} --out '
        f'{args.out / "slim"}\n'
        f"or train with PruningHook(sizes='{args.out / 'policy.json'}')"
    )


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args.config, str(args.out), args.cfg_options)
        criterion = dict(type=args.criterion)
        if args.criterion in ('mcf', 'random'):
            criterion['seed'] = args.seed
        search_checkpoint(
            cfg,
            args.checkpoint,
            args.out,
            args.budget,
            trials=args.trials,
            dims=None if args.dims is None else [kind.strip() for kind in args.dims.split(',')],
            criterion=criterion,
            sampler=args.sampler,
            score=args.score,
            objective=args.objective,
            compensation=args.compensation,
            num_images=args.num_images,
            search_images=args.search_images,
            seed=args.seed,
            max_ratio=read_max_ratio(args.max_ratio),
            storage=args.storage,
            study=args.study,
            resume=args.resume,
            patience=args.patience,
            latency=args.latency,
        )
        print(next_command(args))
    except (ValueError, OSError, ImportError, StorageLost) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
