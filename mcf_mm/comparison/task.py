"""What a comparison is asked to do, and the networks that its stages hand on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from mcf_mm.comparison.bench import Bench, Told
from mcf_mm.comparison.rows import methods
from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.files import whole_file
from mcf_mm.registry import MODELS, split_type
from mcf_mm.weights.checkpoint import load_weights
from mcf_mm.weights.slim_config import PRUNING_HOOKS, write_slim


@dataclass(frozen=True)
class Task:
    """What is compared, and how.

    Attributes:
        config: Config of the dense classifier.
        checkpoint: Its weights.
        out: Folder of the comparison.
        budget: What the networks may cost, of params or macs.
        options: Settings of the config that are overridden.
        images: Calibration images.
        seed: Chooses them, and is that of training.
        heal: Settings of healing, or None.
        epochs: Epochs of training, or None.
        trials: Trials of a search, or None.
        batch: Images at a time when speed and memory are measured.
        rounds: Passes of each network that are timed.
    """

    config: str
    checkpoint: str
    out: str
    budget: str
    options: dict[str, Any] | None = None
    images: int = 500
    seed: int = 0
    heal: dict[str, Any] | None = None
    epochs: int | None = None
    trials: int | None = None
    batch: int = 16
    rounds: int = 9

    def cfg(self, work_dir: Path | str) -> Config:
        """The config of the dense network, without hooks that prune."""
        cfg = load_config(self.config, str(work_dir), self.options)
        cfg.custom_hooks = [
            hook
            for hook in cfg.get('custom_hooks') or []
            if split_type(hook['type'])[1] not in PRUNING_HOOKS
        ]
        return cfg

    def bench(self, folder: Path, told: Told) -> Bench:
        return Bench(self.cfg(folder), self.checkpoint, self.images, told=told)


@MODELS.register_module(name='WholeNetwork')
def whole_network(file: str, **_: Any) -> nn.Module:
    """A network that no config can build: what torch-pruning leaves, written whole."""
    return torch.load(file, weights_only=False, map_location='cpu')


def write_network(
    model: nn.Module, name: str, bench: Bench, task: Task, folder: Path, stem: str = 'slim'
) -> None:
    """Write the network of a row, for the next stage and for whoever wants to use it."""
    if methods()[name].how == 'peer':
        with whole_file(folder / f'{stem}.pt') as partial:
            torch.save(model, partial)
        return
    facts = dict(origin=task.checkpoint, budget=task.budget, method=name, seed=task.seed)
    write_slim(model, bench.cfg, folder, facts, stem=stem)


def network(task: Task, name: str, folder: Path, stem: str = 'slim') -> nn.Module:
    """The network of a row, as a stage before has written it."""
    if methods()[name].how == 'scores':
        folder = folder / 'train'
    if name == 'dense':
        model = build_model(task.cfg(folder))
        load_weights(model, task.checkpoint)
    elif (folder / f'{stem}.pt').is_file():
        model = whole_network(str(folder / f'{stem}.pt'))
    else:
        model = build_model(load_config(str(folder / f'{stem}.py'), str(folder)))
        load_weights(model, folder / f'{stem}.safetensors')
    return model.to(get_device()).train(False)
