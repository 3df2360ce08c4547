"""How long to train a detector of one's own, what to prune of it and what to run."""

import copy
import math
import os
import shlex
import time
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.config import input_shape, load_config, read_config
from mcf_mm.engine.networks import build_model
from mcf_mm.shipped import command

#: Images that are shown in training: ours, an afternoon on two CPU cores or an hour on a GPU.
SHOWN = dict(cpu=6_000, gpu=60_000)


class Schedule(NamedTuple):
    """How long, in what batches and how fast to train."""

    epochs: int
    batch: int
    lr: float
    warmup: int
    workers: int


def plan(num_images: int, detector: str, has_gpu: bool | None = None) -> Schedule:
    """Epochs, batch and learning rate for the size of a set: ours, to start from.

    Args:
        num_images: Of the training set.
        detector: ``'yolos'`` or another one; YOLOS needs four times as long.
        has_gpu: Whether to train on a GPU. Defaults to None, whether there is one.
    """
    if has_gpu is None:
        has_gpu = torch.cuda.is_available()
    batch = min(8 if has_gpu else 2, num_images)
    shown = SHOWN['gpu' if has_gpu else 'cpu'] * (4 if detector == 'yolos' else 1)
    epochs = min(max(round(shown / num_images), 12), 300)
    steps = epochs * math.ceil(num_images / batch)
    workers = min(4, (os.cpu_count() or 1) // 2) if has_gpu else 0
    return Schedule(epochs, batch, 1e-4 * math.sqrt(batch / 2), min(500, steps // 10), workers)


def pruning_budget(config: str | Path) -> tuple[str, str]:
    """A budget that pruning can meet for a config, and what the detector costs; builds it.

    Neck and heads are not pruned, so 60 % of a whole detector may be out of reach. Two fifths of
    the MACs of attentions and FFNs go.
    """
    cfg = read_config(str(config))
    cost = count_complexity(build_model(cfg), input_shape(cfg))
    share = sum(cost.parts[part].macs for part in ('attention', 'ffn')) / cost.macs
    text = (
        f'{cost.params / 1e6:.1f} M parameters, {cost.macs / 1e9:.1f} G MACs; {share:.0%} of the '
        'MACs are in attentions and FFNs, where pruning cuts'
    )
    return f'macs={100 - 40 * share:.0f}%', text


def next_commands(
    out: str | Path, annotations: str, images: str | Path, schedule: Schedule, budget: str
) -> str:
    """What to run with the config: train, prune, recover, compare, look at the validation set."""
    images, annotations, name = (shlex.quote(str(part)) for part in (images, annotations, out))
    stem, last = Path(out).stem, f'epoch_{schedule.epochs}.pth'
    dense, small, recovered, pictures = (
        shlex.quote(f'work_dirs/{stem}{end}') for end in ('', '_small', '_recovered', '_pictures')
    )
    epochs = recovery_epochs(schedule)
    train, prune, test, detect = (command(tool) for tool in ('train', 'prune', 'test', 'detect'))
    against = f'{recovered}/slim.py {recovered}/slim.safetensors'
    return f"""{train} {name}
{prune} {name} {dense}/{last} --budget {budget} --out {small}
{train} {small}/slim.py --work-dir {recovered} --epochs {epochs}
{test} {name} {dense}/{last} --against {against}
{detect} {images} --only {annotations} --config {name} --checkpoint {dense}/{last} \\
    --against {against} --out {pictures}"""


def recovery_epochs(schedule: Schedule) -> int:
    """Epochs after pruning: ours, a third of those before."""
    return max(1, schedule.epochs // 3)


def step_seconds(config: str | Path) -> float:
    """How long the forward and backward pass of a batch take here, from the second one on.

    Args:
        config: Config of a detector, whose first training images are taken.
    """
    cfg = load_config(str(config))
    model = build_model(cfg).to(get_device()).train()
    loader = cfg.train_dataloader
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(copy.deepcopy(loader.dataset))
    spent = []
    for _ in range(2):
        begun = time.perf_counter()
        batch = pseudo_collate([dataset[i % len(dataset)] for i in range(loader.batch_size)])
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begun)
    return spent[-1]


def duration(config: str | Path, schedule: Schedule, num_images: int) -> str:
    """A line on how long training and recovery take on this machine."""
    try:
        seconds = step_seconds(config)
    except RuntimeError as error:  # no memory, or an operator that mmcv was built without
        return f'a step could not be timed here, and training would stop alike: {error}'
    steps = math.ceil(num_images / schedule.batch)
    train, recover = (
        seconds * steps * epochs / 60 for epochs in (schedule.epochs, recovery_epochs(schedule))
    )
    return (
        f'a step takes {seconds:.2g} s here: {schedule.epochs} epochs of {steps} steps take about '
        f'{math.ceil(train)} min, recovery after pruning at most {math.ceil(recover)} min, without '
        'validation'
    )
