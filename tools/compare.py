"""Compares ways to make a classifier smaller: same weights, images and budget, one table.

Prunes with each method and variant here, with torch-pruning (pip install -e '.[peers]') and by the
rules of VBP and GRAIL, to one budget, and reports top-1 on the test set of the config, which no
method sees: in one shot, healed, and after equal training. With parameters, MACs, images per second
in turn with the dense network, peak memory, and seconds to prune. Each row runs in a process of its
own. Results go to ``results.json``, ``table.md`` and ``accuracy.png`` in the output folder, row by
row; what each row printed is in ``rows/NAME/log.txt``, its network beside it.

    python tools/compare.py CONFIG CHECKPOINT --budget macs=60% --out work_dirs/compare
    ... --resume                                   # after a kill
    ... --resume --heal epochs=5 --epochs 4        # adds columns
    ... --rows 'MCF' 'closed form, predicted'      # some rows; --list names them
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.comparison.processes import Crashed
from mcf_mm.comparison.rows import methods
from mcf_mm.comparison.run import compare
from mcf_mm.comparison.task import Task
from mcf_mm.engine.heal import parse_settings


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config of a dense classifier')
    parser.add_argument('checkpoint', nargs='?', help='its weights, with the names of mmpretrain')
    parser.add_argument('--budget', metavar='WHAT=NUMBER', help='macs=60%% or params=3869416')
    parser.add_argument('--out', type=Path, help='folder for the results')
    parser.add_argument(
        '--rows', nargs='+', default=[], metavar='REGEX', help='rows to run (default: all)'
    )
    parser.add_argument('--list', action='store_true', help='name the rows and end')
    parser.add_argument('--num-images', type=int, default=500, help='calibration images')
    parser.add_argument('--heal', metavar='epochs=N,...', help='heal as well, as prune.py does')
    parser.add_argument(
        '--epochs',
        type=int,
        metavar='N',
        help='train each network as well, as train.py does, with the schedule of the config cut '
        'to N epochs',
    )
    parser.add_argument(
        '--search', type=int, metavar='TRIALS', help="search for a policy too (extra 'search')"
    )
    parser.add_argument('--batch', type=int, default=16, help='images at a time, for the speed')
    parser.add_argument('--rounds', type=int, default=9, help='timed passes, for the speed')
    parser.add_argument('--seed', type=int, default=0, help='of calibration images and training')
    parser.add_argument(
        '--resume', action='store_true', help='go on in the folder; what failed is tried again'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings'
    )
    args = parser.parse_args()
    missing = [name for name in ('config', 'checkpoint', 'budget', 'out') if not vars(args)[name]]
    if missing and not args.list:
        parser.error(f'{", ".join(missing)}: missing')
    return args


def main() -> None:
    args = parse_args()
    if args.list:
        print('\n'.join(methods()))
        return
    try:
        task = Task(
            args.config,
            args.checkpoint,
            str(args.out),
            args.budget,
            options=args.cfg_options,
            images=args.num_images,
            seed=args.seed,
            heal=None if args.heal is None else parse_settings(args.heal),
            epochs=args.epochs,
            trials=args.search,
            batch=args.batch,
            rounds=args.rounds,
        )
        results = compare(task, args.rows, args.resume)
    except (ValueError, OSError, ImportError, Crashed) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('\ninterrupted: run the same command with --resume to go on')
    if results['failed']:
        sys.exit(
            f'error: {len(results["failed"])} rows failed: {"; ".join(results["failed"])} '
            '(--resume tries them again)'
        )


if __name__ == '__main__':
    main()
