"""Evaluates a checkpoint, dense or slim, of a classifier (mmpretrain) or a detector (mmdet).

The config's scope decides which; the metrics are those of its ``test_evaluator``. ``--against``
evaluates a second one on the same data: a table shows both, of detectors with the AP of each class.

    python tools/test.py work_dirs/mcf_deit-small_8xb128_in1k/slim.py \\
        work_dirs/mcf_deit-small_8xb128_in1k/slim.safetensors
    python tools/test.py DENSE.py dense.pth --against work_dirs/small/slim.py \\
        work_dirs/small/slim.safetensors
"""

import argparse
import json

from mmengine.config import DictAction

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.evaluate import compare, evaluate, side_by_side


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weights: .pth of a training run, or .safetensors')
    parser.add_argument(
        '--against',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second network to evaluate on the same data, such as slim.py slim.safetensors',
    )
    parser.add_argument('--work-dir', help='logs go here (default: work_dirs/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings: test_dataloader.batch_size=8',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    if args.against is None:
        print(json.dumps(evaluate(cfg, args.checkpoint)))
        return
    config, checkpoint = args.against
    other = load_config(config, args.work_dir, args.cfg_options, args.launcher)
    results = compare((cfg, other), (args.checkpoint, checkpoint))
    print(f'\n{side_by_side(results)}\n\n{json.dumps(results)}')


if __name__ == '__main__':
    main()
