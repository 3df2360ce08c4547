"""Measured times by unit and size against what networks of these sizes then take.

Random policies and policies within budgets of latency; each network is timed in turn with the
dense one. On a busy machine both statistics that are printed scatter by some percent.

    OMP_NUM_THREADS=1 python tools/benchmarks/latency_table.py --model deit_tiny_patch16_224
"""

import argparse
import copy
import random
import time
from statistics import median

import timm
import torch
from torch import nn

from mcf_mm.pruning import FFN, SlimLinear, find_units, measure_costs, resize, within_budget
from mcf_mm.search import measure_latency, read_latency
from mcf_mm.search.timing import default_clock, device_of, quartile, synchronize

KINDS = ('heads', 'qk', 'v', 'inputs', 'hidden')


def random_sizes(units, kinds, generator: random.Random, multiple: int) -> dict:
    """Sizes of every unit, from 30 % of each kind to all."""
    sizes = {}
    for unit in units:
        for kind in (kind for kind in unit.kinds if kind in kinds):
            full = unit.sizes[kind]
            size = generator.randint(max(1, round(0.3 * full)), full)
            if kind != 'heads' and multiple > 1:
                size = max(multiple, size // multiple * multiple)
            sizes.setdefault(unit.name, {})[kind] = size
    return sizes


def build(model: nn.Module, sizes: dict) -> nn.Module:
    """A copy of the network with these sizes; inputs that are kept lie all over the width."""
    small = copy.deepcopy(model)
    for unit in find_units(small):
        resize(unit, sizes.get(unit.name, {}))
        if isinstance(unit, FFN) and isinstance(unit.fc1, SlimLinear):
            order = torch.randperm(unit.width)[: unit.sizes['inputs']]
            unit.fc1.inputs.copy_(order.sort().values)
    return small


@torch.inference_mode()
def shares(models: list[nn.Module], images: torch.Tensor, rounds: int) -> list[list[float]]:
    """Time of each network over that of the first: of lower quartiles, and the median of pairs.

    Each pass has one of the first network beside it, before and after it in turn.
    """
    device = device_of(models[0])
    clock = default_clock(device)

    def seconds(model: nn.Module) -> float:
        synchronize(device)
        start = clock()
        model(images)
        synchronize(device)
        return clock() - start

    pairs: list[list[tuple[float, float]]] = [[] for _ in models[1:]]
    for number in range(rounds + 1):
        for own, model in zip(pairs, models[1:], strict=True):
            order = (models[0], model) if number % 2 else (model, models[0])
            times = [seconds(each) for each in order]
            if number:
                own.append((times[0], times[1]) if number % 2 else (times[1], times[0]))
    dense = [time for own in pairs for time, _ in own]
    print(f'dense in the check {1e3 * quartile(dense):.1f} ms, median {1e3 * median(dense):.1f} ms')
    return [
        [
            quartile([time for _, time in own]) / quartile([time for time, _ in own]),
            median(small / full for full, small in own),
        ]
        for own in pairs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='deit_tiny_patch16_224', help='name in timm')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=1, help='images (default: 1)')
    parser.add_argument('--rounds', type=int, default=15, help='of the table (default: 15)')
    parser.add_argument('--checks', type=int, default=25, help='rounds of networks (default: 25)')
    parser.add_argument('--policies', type=int, default=6, help='random ones (default: 6)')
    parser.add_argument('--budgets', nargs='*', default=['0.8', '0.6'], help='shares of the time')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--file', help='table: read it if it is there, else write it')
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    generator = random.Random(args.seed)
    model = timm.create_model(args.model).eval().to(args.device)
    size = model.pretrained_cfg['input_size']
    images = torch.randn(args.batch, *size, device=args.device)
    units = find_units(model)
    start = time.perf_counter(), time.process_time()
    try:
        latency = read_latency(args.file or '', args.device)
        print(f'read {args.file}')
    except FileNotFoundError:
        latency = measure_latency(model, lambda network: network(images), units, rounds=args.rounds)
        print(
            f'table in {time.perf_counter() - start[0]:.0f} s '
            f'({time.process_time() - start[1]:.0f} s of the processor), '
            f'{sum(t.seconds.numel() for t in latency.tables)} points and those of equal q/k and v'
        )
        if args.file:
            latency.save(args.file)
    print(latency.facts)
    print(f'dense {1e3 * latency.dense:.1f} ms, outside of units {1e3 * latency.rest:.1f} ms')
    costs = measure_costs(model, lambda network: network(images[:1]), units)
    costs.latency = latency
    policies = {}
    for number in range(args.policies):
        kinds = [KINDS, ('inputs', 'hidden'), ('heads', 'hidden')][number % 3]
        multiple = 1 + 7 * (number // 3 % 2)
        name = f'random {"+".join(kinds)}, multiples of {multiple}'
        policies[name] = random_sizes(units, kinds, generator, multiple)
    for budget in args.budgets:
        for kinds in (('inputs', 'hidden'), ('heads', 'hidden'), ('heads', 'qk', 'v', 'hidden')):
            try:
                sizes = within_budget(units, costs, f'latency={budget}', kinds)
                policies[f'latency={budget} of {"+".join(kinds)}'] = sizes
            except ValueError as error:
                print(error)
    models = [model, *(build(model, sizes) for sizes in policies.values())]
    measured = shares(models, images, args.checks)
    errors = []
    print(f'{"policy":52} predicted quartiles  error    pairs   error')
    for (name, sizes), own in zip(policies.items(), measured, strict=True):
        predicted = latency.of(sizes) / latency.dense
        errors.append([100 * (predicted / share - 1) for share in own])
        print(
            f'{name:52} {predicted:9.3f} {own[0]:9.3f} {errors[-1][0]:+5.1f} % '
            f'{own[1]:8.3f} {errors[-1][1]:+5.1f} %'
        )
    for name, own in zip(('lower quartiles', 'pairs'), zip(*errors, strict=True), strict=True):
        sizes = [abs(error) for error in own]
        print(f'{name}: mean error {sum(sizes) / len(sizes):.1f} %, largest {max(sizes):.1f} %')


if __name__ == '__main__':
    main()
