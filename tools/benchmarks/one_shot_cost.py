"""What one-shot pruning costs beside the plain forward pass of its calibration images.

    python tools/benchmarks/one_shot_cost.py --model deit_small_patch16_224 --images 1024
    python tools/benchmarks/one_shot_cost.py --budget macs=60% --metric plain
    python tools/benchmarks/one_shot_cost.py --budget macs=60% --metric fisher
    python tools/benchmarks/one_shot_cost.py --criterion hsic --batch 128

With a budget it is the closed form, over hidden units, query/key and value channels and heads, with
predicted cost curves; with a criterion, that one drops a quarter of the heads and 0.4 of the hidden
units.
"""

import argparse
import copy
import resource
import time

import timm
import torch

from mcf_mm.pruning import prune
from mcf_mm.pruning.compensation import COMPENSATIONS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='deit_small_patch16_224', help='name in timm')
    parser.add_argument('--images', type=int, default=1024)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--compensation', choices=COMPENSATIONS, help="default: the criterion's")
    parser.add_argument('--criterion', help='such as hsic, by ratios for heads and hidden units')
    parser.add_argument('--budget', help='such as macs=60%%; default: MCF, p = 0.4')
    parser.add_argument('--metric', choices=('plain', 'fisher'), default='plain')
    parser.add_argument('--dims', default='hidden,v,qk,heads', help='what a budget may prune')
    args = parser.parse_args()

    torch.manual_seed(0)
    model = timm.create_model(args.model).eval()

    def batches():
        generator = torch.Generator().manual_seed(0)
        for start in range(0, args.images, args.batch):
            yield torch.randn(
                min(args.batch, args.images - start), 3, 224, 224, generator=generator
            )

    @torch.inference_mode()
    def plain() -> None:
        for images in batches():
            model(images)

    def pruned() -> None:
        arguments = dict(compensation=args.compensation)
        if args.budget is not None:
            criterion = dict(type='obs', metric=args.metric, allocation='predicted')
            kinds = args.dims.split(',')
            arguments |= dict(criterion=criterion, budget=args.budget, kinds=kinds)
        elif args.criterion is not None:
            arguments |= dict(criterion=args.criterion, ratios=dict(heads=0.25, hidden=0.4))
        prune(copy.deepcopy(model), batches(), **arguments)

    # Processor time, all threads together: it hardly minds what else the machine does.
    seconds = {}
    for work in (plain, pruned):
        start = time.process_time()
        work()
        seconds[work] = time.process_time() - start
    print(f'plain forward pass  {seconds[plain]:8.1f} s of processor time')
    print(f'pruning             {seconds[pruned]:8.1f} s')
    print(f'ratio               {seconds[pruned] / seconds[plain]:8.3f}')
    print(
        f'peak resident       {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB'
    )


if __name__ == '__main__':
    main()
