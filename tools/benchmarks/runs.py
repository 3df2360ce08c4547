"""Trainings of the benchmarks: each goes on where it was, what is complete is not done again."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
METRICS = {'AP': 'mAP', 'AP50': 'mAP_50', 'small': 'mAP_s', 'medium': 'mAP_m', 'large': 'mAP_l'}


def started(work_dir: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (work_dir / 'last_checkpoint').exists()


def complete(config: Path, work_dir: Path, epochs: int | None = None) -> bool:
    """Whether the last epoch is written; ``epochs`` defaults to those of the config."""
    if not started(work_dir):
        return False
    epochs = epochs or Config.fromfile(config).train_cfg.max_epochs
    return Path((work_dir / 'last_checkpoint').read_text()).name == f'epoch_{epochs}.pth'


def train_command(
    config: Path,
    work_dir: Path,
    seed: int,
    options: Sequence[str] = (),
    flags: Sequence[str] = (),
    gpus: int = 1,
) -> list[str]:
    """The command that trains, or goes on where the work directory has a checkpoint.

    Args:
        config: Config file.
        work_dir: Where logs and checkpoints go.
        seed: Seed of the run.
        options: More ``KEY=VALUE`` for ``--cfg-options``. Defaults to none.
        flags: More flags of ``tools/train.py``. Defaults to none.
        gpus: More than one start as many processes. Defaults to 1.
    """
    launch = [sys.executable]
    if gpus > 1:
        launch += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={gpus}']
        flags = [*flags, '--launcher', 'pytorch']
    resume = ['--resume'] if started(work_dir) else []
    settings = ['--cfg-options', f'randomness.seed={seed}', *options]
    tool = [str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir)]
    return [*launch, *tool, *resume, *flags, *settings]


def logged(work_dir: Path) -> list[dict]:
    """What a run logged, a dict for each step or evaluation."""
    # One file for each start of the run; what was done twice stands in the later one.
    rows = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for row in map(json.loads, path.read_text().splitlines()):
            rows['loss' in row, row['step']] = row
    return list(rows.values())


def train(config: Path, work_dir: Path, seed: int) -> list[dict]:
    """Trains if need be; returns what was logged."""
    if not complete(config, work_dir):
        subprocess.run(train_command(config, work_dir, seed), check=True)
    return logged(work_dir)


def last_scores(rows: Sequence[dict], kind: str = 'bbox') -> dict[str, Any]:
    """Average precisions of the last evaluation, empty where there are none of this kind.

    ``classes`` has those of each class, where the evaluator was told to find them.
    """
    for row in reversed(rows):
        if f'coco/{kind}_mAP' in row:
            scores: dict[str, Any] = {
                label: row[f'coco/{kind}_{key}'] for label, key in METRICS.items()
            }
            ends = {key.removeprefix('coco/'): value for key, value in row.items()}
            classes = {
                key.removesuffix('_precision'): value
                for key, value in ends.items()
                if key.endswith('_precision')
            }
            return scores | ({'classes': classes} if classes else {})
    return {}
