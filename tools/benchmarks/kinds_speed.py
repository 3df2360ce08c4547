"""How much of the MACs that each kind saves becomes speed, by network, precision and threads.

Each small network is timed in turn with its dense one. A share of 1 means that time falls as MACs
do. Weights do not matter, so kinds are cut by magnitude. Results go to a JSON file, row by row;
what is there is not measured again. The table in configs/mcf/SPEED.md is written by ``tables.py``
beside this file. Needs a quiet machine where there is more than one thread.

    python tools/benchmarks/kinds_speed.py
    python tools/benchmarks/kinds_speed.py --device cuda --batch 64 --threads 1
    python tools/benchmarks/kinds_speed.py --profile --only DeiT-S      # where the time goes
"""

import argparse
import copy
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from tables import read_results, write_results
from torch.profiler import ProfilerActivity

from mcf_mm.analysis.throughput import compare
from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_units, prune

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RESULTS = CONFIGS / 'mcf/results/kinds_speed.json'
#: Config, side of the images, images in a batch on a CPU.
NETWORKS = {
    'DeiT-T': ('mcf/mcf_deit-tiny_8xb128_in1k.py', 224, 8),
    'DeiT-S': ('mcf/mcf_deit-small_8xb128_in1k.py', 224, 4),
    'DeiT-B': ('mcf/mcf_deit-base_8xb128_in1k.py', 224, 2),
    'Swin-T': ('mcf/mcf_swin-tiny_16xb64_in1k.py', 224, 4),
    'YOLOS-Ti': ('yolos/yolos_deit-tiny_8xb2-300e_coco.py', 512, 1),
}
RATIOS = {
    'heads': dict(heads=0.34),
    'qk': dict(qk=0.5),
    'v': dict(v=0.5),
    'hidden': dict(hidden=0.4),
    'inputs': dict(inputs=0.4),
    'tokens': dict(tokens=0.2),
}
#: Several kinds at once, in sizes as they fall and in multiples.
ALL = dict(qk=0.3, v=0.3, hidden=0.4)
MULTIPLES = {'q/k, v, hidden': 1, 'in multiples of 8': 8, 'in multiples of 16': 16}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--results', type=Path, default=RESULTS, help='JSON file of results')
    parser.add_argument('--only', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, help='images (default: 1 to 8, by network)')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--precisions', nargs='+', default=['fp32', 'bf16'])
    parser.add_argument('--rounds', type=int, default=7, help='timed passes of a repeat')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--profile', action='store_true', help='of dense networks, on the CPU')
    args = parser.parse_args()
    if args.profile:
        for name in args.only:
            config, side, batch = NETWORKS[name]
            dense = build_model(load_config(str(CONFIGS / config))).eval()
            profiled(name, dense, torch.randn(args.batch or batch, 3, side, side))
        return
    results = read_results(args.results)
    place = platform.machine() if args.device == 'cpu' else torch.cuda.get_device_name(args.device)
    for name in args.only:
        config, side, batch = NETWORKS[name]
        dense = build_model(load_config(str(CONFIGS / config))).eval()
        for kind, small in small_networks(dense):
            for threads in args.threads:
                torch.set_num_threads(threads)
                for precision in args.precisions:
                    key = f'{place} | {precision}, {threads} thread(s) | {name} | {kind}'
                    if key in results:
                        continue
                    pair = {'dense': dense.to(args.device), 'small': small.to(args.device)}
                    settings = dict(
                        batch_size=args.batch or batch,
                        rounds=args.rounds,
                        amp=precision == 'bf16',
                    )
                    runs = [compare(pair, (side, side), **settings) for _ in range(args.repeats)]
                    results[key] = dict(
                        batch=settings['batch_size'],
                        macs_ratio=round(runs[0].macs_ratio, 3),
                        shares=[round(run.share, 3) for run in runs],
                    )
                    Console().print(f'{key}: {results[key]}', markup=False, highlight=False)
                    write_results(args.results, results)


@torch.no_grad()
def profiled(name: str, dense: torch.nn.Module, images: torch.Tensor, passes: int = 4) -> None:
    """Print in which operations a network spends its time, in both precisions."""
    torch.set_num_threads(1)
    for precision in ('fp32', 'bf16'):
        with torch.autocast('cpu', enabled=precision == 'bf16'):
            dense(images)
            with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as found:
                for _ in range(passes):
                    dense(images)
        times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
        total = sum(times.values())
        print(f'{name}, {precision}: {total / passes / 1000:.0f} ms')
        for key in sorted(times, key=times.get, reverse=True)[:5]:
            print(f'  {key:50} {times[key] / passes / 1000:6.0f} ms {times[key] / total:6.1%}')


def small_networks(dense: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The network with less of each kind that it has, and with less of several."""
    own = {kind for unit in find_units(dense).every for kind in unit.kinds}
    networks = {kind: (ratios, 1) for kind, ratios in RATIOS.items() if kind in own}
    networks |= {name: (ALL, multiple) for name, multiple in MULTIPLES.items()}
    for name, (ratios, multiple) in networks.items():
        small = copy.deepcopy(dense)
        prune(small, [], criterion='magnitude', ratios=ratios, multiple=multiple)
        yield name, small


if __name__ == '__main__':
    main()
