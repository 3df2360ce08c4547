"""DeiT-Ti with attention inside windows beside global attention: MACs and time of one image.

OMP_NUM_THREADS=1 python tools/benchmarks/windowed_attention.py             # 320, 640, 1024 px
OMP_NUM_THREADS=1 python tools/benchmarks/windowed_attention.py --train     # with backward pass

The networks are timed in turn in one process, in float32. The time is the processor's, all threads
together, which hardly minds what else the machine does.
"""

import argparse
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.models import SlimVisionTransformer


def seconds(model: SlimVisionTransformer, side: int, train: bool) -> float:
    """Processor time of one image."""
    image = torch.randn(1, 3, side, side)
    start = time.process_time()
    with torch.set_grad_enabled(train):
        (features,) = model(image)
        if train:
            features.square().mean().backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', default='deit-tiny', help='default: deit-tiny')
    parser.add_argument('--window', type=int, default=14, help='in patches (default: 14)')
    parser.add_argument('--sides', type=int, nargs='+', default=[320, 640, 1024], metavar='PX')
    parser.add_argument('--rounds', type=int, default=3, help='default: 3')
    parser.add_argument('--train', action='store_true', help='with the backward pass')
    args = parser.parse_args()
    settings = dict(arch=args.arch, out_type='featmap')
    models = {
        'global': SlimVisionTransformer(**settings),
        f'windows of {args.window}': SlimVisionTransformer(**settings, window_size=args.window),
    }
    table = Table('side, px', 'attention', 'GMACs', 'ratio', 'seconds', 'ratio')
    for side in args.sides:
        times: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(args.rounds + 1):
            for name, model in models.items():
                model.train(args.train)
                spent = seconds(model, side, args.train)
                if turn:  # the first is to warm up
                    times[name].append(spent)
        macs = {name: count_complexity(m, (side, side)).macs for name, m in models.items()}
        for name in models:
            own = median(times[name])
            table.add_row(
                str(side),
                name,
                f'{macs[name] / 1e9:.2f}',
                f'{macs[name] / macs["global"]:.2f}',
                f'{own:.3f}',
                f'{own / median(times["global"]):.2f}',
            )
    Console(width=90).print(table)


if __name__ == '__main__':
    main()
