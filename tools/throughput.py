"""Times two networks in turn and compares the gain with what their MACs promise."""

import argparse
import contextlib
import json
import sys

import torch
from rich.console import Console
from rich.table import Table

from mcf_mm.analysis.throughput import Comparison, compare
from mcf_mm.engine.config import input_shape, read_config
from mcf_mm.engine.networks import dense_and_pruned


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Times two networks in turn in one process, takes the median of each, and '
        'compares their throughput with their multiply-accumulate operations (MACs). Takes '
        'classifier configs of mmpretrain and detector configs of mmdet; no checkpoint and no '
        'data is needed. With OMP_NUM_THREADS=1 on the CPU it counts processor time, which other '
        'processes do not disturb.',
        epilog='example: python tools/throughput.py configs/mcf/mcf_deit-small_8xb128_in1k.py',
    )
    parser.add_argument('first', metavar='A', help='config of the first network, usually dense')
    parser.add_argument(
        'second',
        metavar='B',
        nargs='?',
        help='config of the second; one with mcf_mm.MCFPruningHook stands for the network that '
        'the hook leaves (default: A, which must have the hook then)',
    )
    parser.add_argument('--batch', type=int, default=64, help='images in a batch (default: 64)')
    parser.add_argument(
        '--rounds', type=int, default=15, help='timed passes of each network (default: 15)'
    )
    parser.add_argument(
        '--device', default='cpu', help="'cpu', 'cuda' or 'cuda:1' ... (default: cpu)"
    )
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on a GPU, bfloat16 on the CPU'
    )
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile; on the CPU with a C++ compiler'
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="image size in pixels (default: what the test pipeline of A's config makes)",
    )
    parser.add_argument(
        '--json',
        action='store_true',
        help='print one object {"networks": {"A": {"params", "macs", "images_per_second"}, "B": '
        '...}, "throughput_ratio", "macs_ratio", "share"} and nothing else',
    )
    return parser.parse_args()


def table(comparison: Comparison) -> Table:
    """One row for each network, and how they compare."""
    result = Table()
    result.add_column('')
    for column in ('params (M)', 'MACs (G)', 'images/s'):
        result.add_column(column, justify='right')
    for name, speed in comparison.networks.items():
        cells = (speed.params / 1e6, speed.macs / 1e9, speed.images_per_second)
        result.add_row(name, *(f'{cell:,.3f}' for cell in cells))
    return result


def main() -> None:
    args = parse_args()
    # Whatever the libraries say goes to stderr, so that stdout can be piped.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            first = read_config(args.first)
            second = read_config(args.second) if args.second else None
            shape = tuple(args.shape) if args.shape else input_shape(first)
            models = dense_and_pruned(first, second)
            for model in models.values():
                model.to(args.device)
            comparison = compare(
                models,
                shape,
                batch_size=args.batch,
                rounds=args.rounds,
                amp=args.amp,
                compile=args.compile,
            )
        # RuntimeError: no such device. AssertionError: torch without CUDA.
        except (ValueError, OSError, RuntimeError, AssertionError) as error:
            sys.exit(f'error: {error}')
    if args.json:
        print(json.dumps(comparison.to_dict(), indent=2))
        return
    how = ', '.join(
        [
            args.device if args.device != 'cpu' else f'cpu, {torch.get_num_threads()} thread(s)',
            'autocast' if args.amp else 'float32',
            *(['torch.compile'] if args.compile else []),
            f'batch {args.batch}',
        ]
    )
    print(f'A {args.first}\nB {args.second or f"{args.first}, pruned"}')
    print(f'{shape[0]} x {shape[1]} pixels, {how}, median of {args.rounds} passes each')
    Console().print(table(comparison))
    print(
        f'throughput ratio {comparison.throughput_ratio:.3f}, '
        f'MACs ratio {comparison.macs_ratio:.3f}: {comparison.share:.1%} of it'
    )


if __name__ == '__main__':
    main()
