"""How much faster a training step is after surgery: the epochs that recover against those before.

Forward pass, backward pass and AdamW of the dense and of the pruned network in turn, in one
process; medians of processor time. Images and labels are random, no data is read.

    OMP_NUM_THREADS=1 python tools/benchmarks/recovery_speed.py \\
        configs/mcf/mcf_deit-tiny_8xb128_in1k.py
"""

import argparse
import time
from statistics import median

import torch
from mmengine.config import Config
from rich.progress import track
from torch import nn

from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import dense_and_pruned


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> float:
    """Processor seconds of one training step."""
    start = time.process_time()
    optimizer.zero_grad()
    model(images, mode='tensor').square().mean().backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='classifier config with mcf_mm.MCFPruningHook')
    parser.add_argument('--batch', type=int, default=16, help='images in a step (default: 16)')
    parser.add_argument('--rounds', type=int, default=9, help='steps of each (default: 9)')
    args = parser.parse_args()
    config = Config.fromfile(args.config)
    models = dense_and_pruned(config)
    images = torch.randn(args.batch, 3, *input_shape(config))
    optimizers = {
        name: torch.optim.AdamW(model.train().parameters()) for name, model in models.items()
    }
    seconds = {name: [] for name in models}
    for number in track(range(args.rounds + 1)):
        for name, model in models.items():
            elapsed = step(model, optimizers[name], images)
            if number > 0:
                seconds[name].append(elapsed)
    before, after = (median(times) for times in seconds.values())
    print(
        f'{before:.3f} s before surgery, {after:.3f} s after it: {before / after:.2f} times as fast'
    )


if __name__ == '__main__':
    main()
