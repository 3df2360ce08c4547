"""Prunes the FFNs of a trained network in one shot, without training.

Writes ``slim.safetensors`` and ``slim.py`` to the output folder; both go straight into
``tools/test.py``, ``tools/train.py`` (to recover) or, as a backbone, into a detector.
Calibration takes images of the config's training set.

    python tools/prune.py CONFIG CHECKPOINT --ratio 0.4 --out work_dirs/pruned
    python tools/prune.py CONFIG CHECKPOINT --input-ratio 0 --hidden-ratio 0.52 \\
        --compensation least_squares --out work_dirs/hidden_only
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.prune import prune_checkpoint
from mcf_mm.pruning.compensation import COMPENSATIONS
from mcf_mm.pruning.oneshot import METHODS, STEPS, check_arguments


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the dense network')
    parser.add_argument('checkpoint', help='its weights, with the names of mmpretrain')
    parser.add_argument('--out', required=True, type=Path, help='folder for the result')
    parser.add_argument(
        '--ratio', type=float, default=0.4, help='share of FFN inputs and hidden units to drop'
    )
    parser.add_argument('--input-ratio', type=float, help='for the inputs alone')
    parser.add_argument('--hidden-ratio', type=float, help='for the hidden units alone')
    parser.add_argument(
        '--method',
        choices=METHODS,
        default='mcf',
        help='what to keep: MCF, or a baseline (magnitude is "direct pruning" of the paper)',
    )
    parser.add_argument(
        '--compensation',
        choices=COMPENSATIONS,
        default='none',
        help='fold what is dropped into what stays; none is the paper',
    )
    parser.add_argument(
        '--shared-inputs',
        choices=('layer', 'network'),
        default='layer',
        help='one input set for each FFN, or one for all of them',
    )
    parser.add_argument(
        '--multiple', type=int, default=1, help='round sizes to the nearest multiple, for GPUs'
    )
    parser.add_argument(
        '--last-step',
        choices=STEPS,
        default='x_transformation',
        help='where the method ends, for ablations: zeros only, inputs for each row, or all of it',
    )
    parser.add_argument('--num-images', type=int, default=1024, help='calibration images')
    parser.add_argument('--guide', type=float, default=0.5, help='fraction that guides FIS')
    parser.add_argument('--scale', type=float, default=1.0, help='width of the band of FIS')
    parser.add_argument('--seed', type=int, default=0, help='chooses the calibration images')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings'
    )
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    cfg = load_config(args.pop('config'), str(args['out']), args.pop('cfg_options'))
    ratio = args.pop('ratio')
    for name in ('input_ratio', 'hidden_ratio'):
        args[name] = ratio if args[name] is None else args[name]
    # Now, and not after the network and the images are loaded.
    names = ('method', 'input_ratio', 'hidden_ratio', 'guide', 'last_step', 'compensation')
    check_arguments(*(args[name] for name in names), multiple=args['multiple'])
    prune_checkpoint(cfg, args.pop('checkpoint'), args.pop('out'), **args)


if __name__ == '__main__':
    main()
