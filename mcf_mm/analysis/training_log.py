"""What MMEngine noted of a training run: losses, validation and when the network became small."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: In the log folder of each start of a run, written by MMEngine's LocalVisBackend.
SCALARS = 'vis_data/scalars.json'
#: What a line has besides figures of the network.
_NO_FIGURES = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory', 'lr', 'base_lr', 'momentum')


@dataclass
class TrainingLog:
    """Curves of a training run.

    Attributes:
        loss: Iteration and loss, for each line of the log.
        metrics: Epoch and figure of each validation, by name.
        surgery: Epoch at whose start the network became small, None where it did not.
        broken: Lines that are no JSON, such as the last one of a run that was killed.
    """

    loss: list[tuple[int, float]] = field(default_factory=list)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    surgery: int | None = None
    broken: int = 0

    @property
    def measured(self) -> dict[str, float]:
        """Figures of the last validation after surgery, empty where there was none."""
        if self.surgery is None:
            return {}
        last = {name: points[-1] for name, points in self.metrics.items()}
        return {name: value for name, (epoch, value) in last.items() if epoch > self.surgery}


def read_training_log(work_dir: str | Path, small: bool = False) -> TrainingLog | None:
    """Read the log of a run, of all its starts.

    What a start repeats that resumed from an earlier checkpoint counts once, and what came before a
    start from the beginning does not count.

    Args:
        work_dir: Work directory of the run.
        small: Whether the network was small when the run began. Defaults to False: surgery, where
            there was any, is in the log.

    Returns:
        The log; None where there is no line of training.
    """
    training: dict[int, dict] = {}
    others: dict[int, dict] = {}
    broken = 0
    for path in sorted(Path(work_dir).glob(f'*/{SCALARS}')):
        entries = list(_entries(path))
        broken += entries.count(None)
        trained = [entry for entry in entries if entry and 'loss' in entry]
        if not trained:
            continue  # an evaluation
        begin, epoch = trained[0]['step'], trained[0].get('epoch', 1)
        if epoch <= 1:  # from the beginning; the first line comes after `interval` iterations
            training, others = {}, {}
        training = {step: entry for step, entry in training.items() if step < begin}
        others = {step: entry for step, entry in others.items() if step < epoch}
        training |= {entry['step']: entry for entry in trained}
        for entry in entries:
            if entry and 'loss' not in entry and 'step' in entry:
                others[entry['step']] = {**others.get(entry['step'], {}), **entry}
    if not training:
        return None
    log = TrainingLog(broken=broken, surgery=0 if small else None)
    log.loss = [(step, float(entry['loss'])) for step, entry in sorted(training.items())]
    for step, entry in sorted(others.items()):
        if 'mcf/params_after' in entry:
            log.surgery = step
        for name, value in entry.items():
            own = name in _NO_FIGURES or name.startswith('mcf/')
            if not own and isinstance(value, int | float) and not isinstance(value, bool):
                log.metrics.setdefault(name, []).append((step, float(value)))
    return log


def _entries(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines of a file, None for one that is no JSON object."""
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        yield entry if isinstance(entry, dict) else None
