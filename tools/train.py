"""Trains a classifier (mmpretrain) or a detector (mmdet); the config's scope decides which.

A config with ``dict(type='mcf_mm.MCFPruningHook', ratio=0.4)`` among its ``custom_hooks`` prunes
while it trains and leaves ``slim.safetensors`` and ``slim.py`` in the work directory, as the
training of a network that is pruned already does.

    python tools/train.py configs/mcf/mcf_deit-small_8xb128_in1k.py
    python tools/train.py CONFIG --resume            # go on after a crash, to the same weights
    python tools/train.py work_dirs/small/slim.py --epochs 13      # recover what was pruned
    torchrun --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch
"""

import argparse

from mmengine.config import DictAction

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.slim_files import check_work_dir, start_of, write_trained
from mcf_mm.engine.train import scale_schedule, train


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='logs and checkpoints go here (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, without a value from the latest one in the work directory',
    )
    parser.add_argument(
        '--epochs',
        type=int,
        help='train as long as this: warm-up and decay of the learning rate keep their shares',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's batch size to the actual one",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings: train_cfg.max_epochs=3 randomness.seed=1',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    if args.epochs is not None:
        before = (cfg.get('train_cfg') or {}).get('max_epochs')
        notes = scale_schedule(cfg, args.epochs)
        print('\n'.join([f'{args.epochs} epochs in place of {before}', *notes]))
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    start = start_of(cfg)
    check_work_dir(cfg, start)
    write_trained(train(cfg, args.resume), start)


if __name__ == '__main__':
    main()
