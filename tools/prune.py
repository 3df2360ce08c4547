"""Prunes a trained network in one shot, without training.

Writes ``slim.safetensors``, ``slim.py``, the model card ``slim.md`` and ``report/index.html`` to
the output folder; the first two go straight into ``tools/test.py``, ``tools/train.py`` (to
recover) or, as a backbone, into a detector. Calibration takes images of the config's training set.

    python tools/prune.py CONFIG CHECKPOINT --ratio 0.4 --out work_dirs/pruned
    python tools/prune.py CONFIG CHECKPOINT --input-ratio 0 --hidden-ratio 0.52 \\
        --compensation least_squares --out work_dirs/hidden_only
    python tools/prune.py CONFIG CHECKPOINT --criterion fisher \\
        --ratios heads=0.2,qk=0.3,hidden=0.4 --out work_dirs/all_kinds
    python tools/prune.py CONFIG CHECKPOINT --budget macs=60% --method obs --heal minutes=15 \\
        --curves work_dirs/curves.json --out work_dirs/closed_form
    python tools/prune.py CONFIG CHECKPOINT --hidden-ratio 0.52 --input-ratio 0 \\
        --compensation least_squares --heal minutes=15 --out work_dirs/healed
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.heal import parse_settings
from mcf_mm.engine.prune import prune_checkpoint
from mcf_mm.pruning.compensation import COMPENSATIONS
from mcf_mm.pruning.criteria import CRITERIA
from mcf_mm.pruning.criteria.mcf import METHODS
from mcf_mm.pruning.criteria.regular import STEPS
from mcf_mm.pruning.structure import check_seed

#: Options that only the criterion mcf has.
OF_MCF = dict(method='mcf', guide=0.5, scale=1.0, shared_inputs='layer')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the dense network')
    parser.add_argument('checkpoint', help='its weights, with the names of mmpretrain')
    parser.add_argument('--out', required=True, type=Path, help='folder for the result')
    parser.add_argument(
        '--criterion',
        choices=tuple(CRITERIA),
        help='what is important: mcf for inputs and hidden units, obs the closed form, hsic for '
        'heads and hidden units, the others for every kind (default: obs with --budget, otherwise '
        'mcf)',
    )
    parser.add_argument(
        '--ratio', type=float, help='share of FFN inputs and hidden units to drop (default: 0.4)'
    )
    parser.add_argument('--input-ratio', type=float, help='for the inputs alone')
    parser.add_argument('--hidden-ratio', type=float, help='for the hidden units alone')
    parser.add_argument(
        '--ratios',
        metavar='KIND=RATIO,...',
        help='share of each kind to drop, of inputs, hidden, heads, qk and v, instead of the above',
    )
    parser.add_argument(
        '--sizes',
        metavar='FILE',
        help='JSON file {"unit": {"kind": number}} that says how many are kept, instead of ratios',
    )
    parser.add_argument(
        '--method',
        choices=(*METHODS, 'obs'),
        help='how the criterion mcf scores weights: as the paper, or a baseline (magnitude is '
        '"direct pruning" of the paper); obs is short for --criterion obs',
    )
    parser.add_argument(
        '--compensation',
        choices=COMPENSATIONS,
        help='fold what is dropped into what stays; none is the paper (default: least_squares '
        'with obs, otherwise none)',
    )
    parser.add_argument(
        '--budget',
        metavar='WHAT=NUMBER',
        help='what the network may cost, instead of ratios: params=3869416, macs=60%% or '
        'latency=70%%, met to the last element',
    )
    parser.add_argument(
        '--dims',
        metavar='KIND,...',
        help='what a budget may prune: hidden,v,qk,heads,inputs (default: all with obs, '
        'otherwise inputs and hidden)',
    )
    parser.add_argument(
        '--allocation',
        choices=('measured', 'predicted'),
        help='of obs: where a budget cuts, by losses as predicted or as measured (the default)',
    )
    parser.add_argument(
        '--curves',
        metavar='FILE',
        help='JSON file of the cost curves of obs, with the moments beside it: written if it is '
        'not there, otherwise read, and no image is needed',
    )
    parser.add_argument(
        '--latency',
        metavar='FILE',
        help='JSON file of measured times, for --budget latency=70%%: written if it is not there, '
        'otherwise read, also on another machine',
    )
    parser.add_argument(
        '--latency-batch', type=int, default=1, help='images at a time when times are measured'
    )
    parser.add_argument(
        '--shared-inputs',
        choices=('layer', 'network'),
        default=OF_MCF['shared_inputs'],
        help='of mcf: one input set for each FFN, or one for all of them',
    )
    parser.add_argument(
        '--multiple', type=int, default=1, help='round sizes to the nearest multiple, for GPUs'
    )
    parser.add_argument(
        '--last-step',
        choices=STEPS,
        default='x_transformation',
        help='where mcf ends, for ablations: fis and crs leave zeros in a network of full size',
    )
    parser.add_argument('--num-images', type=int, default=1024, help='calibration images')
    parser.add_argument(
        '--guide', type=float, default=OF_MCF['guide'], help='fraction that guides FIS'
    )
    parser.add_argument(
        '--scale', type=float, default=OF_MCF['scale'], help='width of the band of FIS'
    )
    parser.add_argument(
        '--heal',
        metavar='minutes=N|epochs=N',
        help='after the cut, train the small network on the calibration images, without labels, to '
        'put out what the dense one does; more settings after commas, as in '
        'epochs=20,bf16=True,folder=DIR (of other images)',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with a --heal that was interrupted, with the same options as before',
    )
    parser.add_argument('--seed', type=int, default=0, help='chooses the calibration images')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings'
    )
    return parser.parse_args()


def read_ratios(args: argparse.Namespace) -> dict[str, float] | None:
    """Ratios by kind, of whichever options were given; None when sizes were.

    Raises:
        ValueError: Options contradict each other, or a ratio is no number.
    """
    single = {
        '--ratio': args.ratio,
        '--input-ratio': args.input_ratio,
        '--hidden-ratio': args.hidden_ratio,
    }
    given = [name for name, value in single.items() if value is not None]
    several = [name for name in ('ratios', 'sizes', 'budget') if getattr(args, name) is not None]
    if several and (given or len(several) > 1):
        raise ValueError(f'--{several[0]} cannot be given together with others: {given or several}')
    if args.budget is None and (args.dims or args.curves):
        raise ValueError('--dims and --curves are for a --budget: give one')
    if args.sizes is not None or args.budget is not None:
        return None
    if args.ratios is None:
        ratio = 0.4 if args.ratio is None else args.ratio
        return dict(
            inputs=ratio if args.input_ratio is None else args.input_ratio,
            hidden=ratio if args.hidden_ratio is None else args.hidden_ratio,
        )
    ratios: dict[str, float] = {}
    for part in args.ratios.split(','):
        kind, _, value = part.partition('=')
        if kind.strip() in ratios:
            raise ValueError(f'--ratios names {kind.strip()} twice: {args.ratios!r}')
        try:
            ratios[kind.strip()] = float(value)
        except ValueError:
            raise ValueError(f'--ratios must be KIND=RATIO,..., got {args.ratios!r}') from None
    return ratios


def read_criterion(args: argparse.Namespace) -> dict:
    """The criterion with the options that are its own.

    Raises:
        ValueError: An option is for another criterion.
    """
    name = args.criterion or ('mcf' if args.budget is None else 'obs')
    if args.method == 'obs':
        if args.criterion not in (None, 'obs'):
            raise ValueError(f'--method obs is --criterion obs, got --criterion {args.criterion}')
        name = 'obs'
    elif args.method is not None and args.criterion is None:
        name = 'mcf'
    criterion = dict(type=name)
    given = dict(vars(args), method=None if args.method == 'obs' else args.method)
    given = {key: default if given[key] is None else given[key] for key, default in OF_MCF.items()}
    if name == 'mcf':
        criterion |= given | dict(seed=args.seed)
    for key, default in OF_MCF.items():
        if name != 'mcf' and given[key] != default:
            option = f'--{key.replace("_", "-")}'
            raise ValueError(f'{option} {given[key]} is for --criterion mcf, got {name}')
    if name == 'random':
        criterion['seed'] = args.seed
    if args.allocation is not None:
        if name != 'obs' or args.budget is None:
            raise ValueError('--allocation is for a --budget with --criterion obs')
        criterion['allocation'] = args.allocation
    return criterion


def read_heal(args: argparse.Namespace) -> dict | None:
    """Settings of healing; None where none was asked for.

    Raises:
        ValueError: They are wrong, or ``--resume`` is given without them.
    """
    if args.heal is None:
        if args.resume:
            raise ValueError('--resume goes on with --heal: give the same --heal as before')
        return None
    return parse_settings(args.heal)


def main() -> None:
    args = parse_args()
    try:
        check_seed(args.seed)
        cfg = load_config(args.config, str(args.out), args.cfg_options)
        prune_checkpoint(
            cfg,
            args.checkpoint,
            args.out,
            num_images=args.num_images,
            seed=args.seed,
            criterion=read_criterion(args),
            ratios=read_ratios(args),
            sizes=args.sizes,
            last_step=args.last_step,
            compensation=args.compensation,
            multiple=args.multiple,
            budget=args.budget,
            kinds=None if args.dims is None else [kind.strip() for kind in args.dims.split(',')],
            curves=args.curves,
            latency=args.latency,
            latency_batch=args.latency_batch,
            heal=read_heal(args),
            resume=args.resume,
        )
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
