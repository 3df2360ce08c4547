"""What counting a policy in closed form takes, beside torch's FlopCounterMode on the cut network.

python tools/benchmarks/policy_cost.py --model deit_small_patch16_224
"""

import argparse
import copy
import time

import timm
import torch

from mcf_mm.pruning import cut, find_units, measure_costs, prune, uniform, within_budget
from mcf_mm.pruning.structure import Structure


def seconds(work, repeats: int) -> float:
    """Shortest time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='deit_small_patch16_224', help='name in timm')
    args = parser.parse_args()
    model = timm.create_model(args.model).eval()
    image = torch.zeros(1, 3, 224, 224)
    units = find_units(model)
    costs = measure_costs(model, lambda network: network(image))
    sizes = uniform(units, dict(heads=0.2, qk=0.3, v=0.3, inputs=0.2, hidden=0.4))
    small = copy.deepcopy(model)
    structure: Structure = prune(small, criterion='random', sizes=sizes)
    counted = measure_costs(small, lambda network: network(image))
    assert costs.of(sizes) == counted.of({}), 'the closed form differs from the counter'
    closed = seconds(lambda: costs.of(sizes), 200)
    budget = seconds(
        lambda: within_budget(units, costs, 'macs=60%', ['heads', 'qk', 'v', 'hidden']), 3
    )
    again = copy.deepcopy(model)
    cut(again, structure)
    counter = seconds(lambda: measure_costs(again, lambda network: network(image)), 3)
    print(f'{args.model}: {costs.of(sizes)} of {costs.of({})}, equal to FlopCounterMode')
    print(f'closed form       {1e3 * closed:9.4f} ms')
    print(f'FlopCounterMode   {1e3 * counter:9.1f} ms')
    print(f'an exact budget   {1e3 * budget:9.1f} ms')


if __name__ == '__main__':
    main()
