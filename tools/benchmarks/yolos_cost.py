"""Forward and backward pass of YOLOS-S beside that of transformers: time and peak memory.

python tools/benchmarks/yolos_cost.py                  # 800 x 1344 pixels, batch 1, on the CPU
python tools/benchmarks/yolos_cost.py --device cuda --rounds 20

The networks are timed in turn in one process. Memory is what a step needs beside the network: each
network has a process of its own for it. transformers runs with scaled_dot_product_attention, its
fastest attention. On a CPU the time is the processor's, all threads together, which hardly minds
what else the machine does.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import YolosConfig, YolosForObjectDetection

from mcf_mm.analysis.complexity import count_complexity, resized
from mcf_mm.pruning import find_units, uniform
from mcf_mm.registry import MODELS

POSITIONS = (512, 864)


def theirs(checkpointing: bool = False) -> nn.Module:
    """YOLOS-S of transformers."""
    config = YolosConfig(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=list(POSITIONS),
        use_mid_position_embeddings=True,
        num_labels=91,
        layer_norm_eps=1e-6,
    )
    model = YolosForObjectDetection._from_config(config, attn_implementation='sdpa')
    if checkpointing:
        model.gradient_checkpointing_enable(dict(use_reentrant=False))
    return model.train()


def ours(checkpointing: bool = False, ratio: float = 0.0) -> nn.Module:
    """YOLOS-S of mcf_mm, with smaller FFNs where ``ratio`` is not 0."""
    model = MODELS.build(
        dict(
            type='mcf_mm.YOLOS',
            backbone=dict(
                type='mcf_mm.YOLOSVisionTransformer',
                arch='deit-small',
                img_size=POSITIONS,
                with_mid_pos_embed=True,
                with_cp=checkpointing,
            ),
            bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=91, embed_dims=384),
        )
    )
    return resized(model, uniform(find_units(model), ratio)).train()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'transformers': theirs,
    'mcf_mm': ours,
    'mcf_mm, MCF p = 0.4': lambda: ours(ratio=0.4),
    'transformers, checkpointing': lambda: theirs(checkpointing=True),
    'mcf_mm, checkpointing': lambda: ours(checkpointing=True),
    'mcf_mm, MCF p = 0.4, checkpointing': lambda: ours(checkpointing=True, ratio=0.4),
}


def step(model: nn.Module, images: Tensor) -> None:
    """One forward and one backward pass."""
    output = model(images)
    logits, boxes = output if isinstance(output, tuple) else (output.logits, output.pred_boxes)
    (logits.square().mean() + boxes.square().mean()).backward()
    model.zero_grad(set_to_none=False)


def synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def peak_memory(name: str, shape: tuple[int, int], device: str) -> float:
    """MiB that one step needs beside the network and its gradients."""
    model = NETWORKS[name]().to(device)
    step(model, torch.zeros(1, 3, 64, 96, device=device))  # gradients, workspaces of libraries
    images = torch.randn(1, 3, *shape, device=device)
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, images)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the highest mark starts anew
    before = resident('VmRSS')
    step(model, images)
    return (resident('VmHWM') - before) / 2**10


def resident(field: str) -> int:
    """KiB of a line of the process's status."""
    return int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def times(shape: tuple[int, int], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each network."""
    models = {name: build().to(device) for name, build in NETWORKS.items()}
    images = torch.randn(1, 3, *shape, device=device)
    clock = time.perf_counter if device == 'cuda' else time.process_time
    seconds = {name: [] for name in models}
    for number in track(range(rounds + 1), 'timing', console=Console(stderr=True), transient=True):
        for name, model in models.items():
            synchronize(device)
            start = clock()
            step(model, images)
            synchronize(device)
            if number:  # the first is not timed
                seconds[name].append(clock() - start)
    return {name: median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344))
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    args = parser.parse_args()
    shape = tuple(args.shape)

    # glibc keeps small blocks that were freed, and what is resident would measure its gaps.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = str(2**20)
    memory = {}
    for name in NETWORKS:
        with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
            memory[name] = pool.submit(peak_memory, name, shape, args.device).result()
    seconds = times(shape, args.device, args.rounds)

    table = Table(title=f'YOLOS-S, {shape[0]} x {shape[1]}, batch 1, {args.device}')
    for column in ('network', 'GMACs', 'seconds', 'ratio', 'MiB', 'ratio'):
        table.add_column(column, justify='left' if column == 'network' else 'right')
    for name, build in NETWORKS.items():
        macs = (
            '' if 'transformers' in name else f'{count_complexity(build(), shape).macs / 1e9:.1f}'
        )
        table.add_row(
            name,
            macs,
            f'{seconds[name]:.3f}',
            f'{seconds[name] / seconds["transformers"]:.3f}',
            f'{memory[name]:.0f}',
            f'{memory[name] / memory["transformers"]:.3f}',
        )
    Console().print(table)


if __name__ == '__main__':
    main()
