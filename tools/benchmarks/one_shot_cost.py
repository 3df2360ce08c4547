"""What one-shot pruning costs beside the plain forward pass of its calibration images.

python tools/benchmarks/one_shot_cost.py --model deit_small_patch16_224 --images 1024
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
    parser.add_argument('--compensation', choices=COMPENSATIONS, default='none')
    args = parser.parse_args()

    torch.manual_seed(0)
    model = timm.create_model(args.model).eval()

    def batches():
        generator = torch.Generator().manual_seed(0)
        for start in range(0, args.images, args.batch):
            yield torch.randn(
                min(args.batch, args.images - start), 3, 224, 224, generator=generator
            )

    def plain() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for images in batches():
                model(images)
        return time.perf_counter() - start

    def pruned() -> float:
        slim = copy.deepcopy(model)
        start = time.perf_counter()
        prune(slim, batches(), compensation=args.compensation)
        return time.perf_counter() - start

    # In turn, the plain pass first and last, so that a drift of the machine shows.
    first, pruning, last = plain(), pruned(), plain()
    print(f'plain forward pass  {first:8.1f} s, again {last:.1f} s')
    print(f'pruning             {pruning:8.1f} s')
    print(f'ratio               {2 * pruning / (first + last):8.3f}')
    print(
        f'peak resident       {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB'
    )


if __name__ == '__main__':
    main()
