"""The main job on the digits: which steps there are, what is complete, what came out.

``tools/demo/main.py`` runs the steps; this module knows nothing of processes or arguments.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from digits import CLASSES
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from rich.table import Table
from torch import nn

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.analysis.plots import plot_detections, plot_kept_sizes
from mcf_mm.analysis.throughput import measure_throughput
from mcf_mm.engine.config import input_shape
from mcf_mm.files import whole_file
from mcf_mm.pruning import find_units

MARKER = 'demo.json'
NUM_PICTURES = 8


@dataclass(frozen=True)
class Step:
    """One training run of the demo.

    Args:
        name: Stem of its config; its files are in ``work_dirs/<name>``.
        title: What it does, for the user.
        result: File that it leaves in its folder at the end.
        after: Steps whose results it starts from.
    """

    name: str
    title: str
    result: str
    after: tuple[str, ...] = ()

    @property
    def work_dir(self) -> Path:
        """Folder of its logs and checkpoints."""
        return Path('work_dirs') / self.name


STEPS = (
    Step('deit-micro_digits', 'train the dense classifier', 'epoch_14.pth'),
    Step(
        'mcf_deit-micro_digits',
        'prune it and recover',
        'slim.safetensors',
        ('deit-micro_digits',),
    ),
    Step(
        'yolos_deit-micro_digits',
        'train the detector on the dense backbone',
        'epoch_5.pth',
        ('deit-micro_digits',),
    ),
    Step(
        'yolos_mcf-deit-micro_digits',
        'train the detector on the pruned backbone',
        'epoch_5.pth',
        ('mcf_deit-micro_digits',),
    ),
)


@dataclass(frozen=True)
class Figures:
    """What is reported of one network.

    Attributes:
        metrics: Top-1 in percent, or AP and AP50 from 0 to 1, by name.
        params: Number of parameters.
        macs: Multiply-accumulate operations for one image.
        images_per_second: At a batch of 64 on this machine.
    """

    metrics: dict[str, float]
    params: int
    macs: int
    images_per_second: float


@dataclass(frozen=True)
class Results:
    """The whole outcome, ``dense`` and ``pruned``, of the classifier and the detector."""

    classifier: dict[str, Figures]
    detector: dict[str, Figures]

    def missed(self) -> list[str]:
        """Says which of the demo's limits are missed; empty when all are met."""
        top1 = {name: figures.metrics['top-1'] for name, figures in self.classifier.items()}
        problems = []
        if top1['dense'] < 93:
            problems.append(f'top-1 of the dense network is {top1["dense"]:.1f}, below 93')
        if top1['pruned'] < top1['dense'] - 1.5:
            lost = top1['dense'] - top1['pruned']
            problems.append(f'pruning costs {lost:.1f} points of top-1, more than 1.5')
        for name, figures in self.detector.items():
            if figures.metrics['AP50'] < 0.3:
                ap50 = figures.metrics['AP50']
                problems.append(f'AP50 of the {name} detector is {ap50:.3f}, below 0.30')
        return problems


def fingerprint(configs: Mapping[str, Config], name: str, data: str) -> str:
    """What a step's result depends on: its config, the steps before it and the data.

    Args:
        configs: Configs of all steps by name.
        name: The step.
        data: What identifies the data set.
    """
    step = next(step for step in STEPS if step.name == name)
    parts = [json.dumps(configs[name].to_dict(), sort_keys=True, default=str), data]
    parts += [fingerprint(configs, before, data) for before in step.after]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def is_done(step: Step, wanted: str) -> bool:
    """Whether the step has run to its end with this fingerprint."""
    marker = _read_json(step.work_dir / MARKER)
    whole = (step.work_dir / step.result).is_file()
    return whole and marker == dict(fingerprint=wanted, done=True)


def begin(step: Step, wanted: str) -> bool:
    """Makes the step's folder ready.

    What another configuration left there is removed; an interrupted run of this one is kept.

    Args:
        step: The step.
        wanted: Its fingerprint.

    Returns:
        Whether there is a checkpoint to go on from.

    Raises:
        FileExistsError: The folder holds something that is not from the demo.
    """
    marker = _read_json(step.work_dir / MARKER)
    if marker is None and step.work_dir.exists() and any(step.work_dir.iterdir()):
        raise FileExistsError(
            f'{step.work_dir} exists and is not from the demo: move or remove it first'
        )
    if marker is not None and marker['fingerprint'] != wanted:
        shutil.rmtree(step.work_dir)
    step.work_dir.mkdir(parents=True, exist_ok=True)
    _write_json(step.work_dir / MARKER, dict(fingerprint=wanted, done=False))
    return (step.work_dir / 'last_checkpoint').is_file()


def finish(step: Step, wanted: str) -> None:
    """Notes that the step has run to its end.

    Raises:
        FileNotFoundError: It did not leave its result.
    """
    if not (step.work_dir / step.result).is_file():
        raise FileNotFoundError(f'{step.title}: it left no {step.work_dir / step.result}')
    _write_json(step.work_dir / MARKER, dict(fingerprint=wanted, done=True))


def read_results(path: Path, wanted: str) -> Results | None:
    """The results that :func:`report` wrote, if they are those of this fingerprint."""
    content = _read_json(path)
    if content is None or content.pop('fingerprint', None) != wanted:
        return None
    return Results(
        **{
            task: {name: Figures(**figures) for name, figures in networks.items()}
            for task, networks in content.items()
        }
    )


def report(configs: Mapping[str, Config], out_dir: Path, wanted: str) -> Results:
    """Evaluates the four networks on the test split, times them and draws the pictures.

    Args:
        configs: Configs of all steps by name.
        out_dir: Folder for ``kept_sizes.png``, ``detections.png`` and ``results.json``.
        wanted: Fingerprint of the whole, kept in ``results.json``.

    Returns:
        The results.
    """
    dense, mcf, yolos, yolos_mcf = STEPS
    slim = Config.fromfile(mcf.work_dir / 'slim.py')
    networks = {
        'classifier': {'dense': (configs[dense.name], dense), 'pruned': (slim, mcf)},
        'detector': {
            'dense': (configs[yolos.name], yolos),
            'pruned': (configs[yolos_mcf.name], yolos_mcf),
        },
    }
    figures: dict[str, dict[str, Figures]] = {}
    for task, pair in networks.items():
        runners = {name: _test(config, step, out_dir) for name, (config, step) in pair.items()}
        models = {name: runner.model for name, (runner, _) in runners.items()}
        shape = input_shape(pair['dense'][0])
        speeds = measure_throughput(models, (3, *shape))
        figures[task] = {}
        for name, (_, metrics) in runners.items():
            cost = count_complexity(models[name], shape)
            figures[task][name] = Figures(metrics, cost.params, cost.macs, speeds[name])
        if task == 'classifier':
            _plot_sizes(out_dir, models)
        else:
            _plot_scenes(out_dir, {name: runner for name, (runner, _) in runners.items()})
    results = Results(**figures)
    _write_json(out_dir / 'results.json', dict(fingerprint=wanted, **asdict(results)))
    return results


METRICS = {
    'accuracy/top1': 'top-1',
    'coco/bbox_mAP': 'AP',
    'coco/bbox_mAP_50': 'AP50',
}


def _test(config: Config, step: Step, out_dir: Path) -> tuple[Runner, dict[str, float]]:
    """Evaluates a step's result; the metrics go by the names of the table."""
    config = config.copy()
    config.load_from = str(step.work_dir / step.result)
    config.work_dir = str(out_dir / 'logs' / step.name)
    config.resume = False
    # The runs share a process, and with it MMEngine's global instances: they need own names.
    config.experiment_name = f'test_{step.name}'
    runner = Runner.from_cfg(config)
    metrics = runner.test()
    return runner, {METRICS[key]: value for key, value in metrics.items() if key in METRICS}


def _plot_sizes(out_dir: Path, models: Mapping[str, nn.Module]) -> None:
    full, sizes = (find_units(models[name]).sizes for name in ('dense', 'pruned'))
    plot_kept_sizes(out_dir / 'kept_sizes.png', sizes, full)


def _plot_scenes(out_dir: Path, runners: Mapping[str, Runner]) -> None:
    dataset = runners['dense'].test_dataloader.dataset
    scenes = [dataset[index] for index in range(NUM_PICTURES)]
    # OpenMMLab's images are (3, H, W) in BGR.
    images = [
        np.ascontiguousarray(scene['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
        for scene in scenes
    ]
    predictions = {
        name: runner.model.test_step(pseudo_collate([dataset[i] for i in range(NUM_PICTURES)]))
        for name, runner in runners.items()
    }
    plot_detections(out_dir / 'detections.png', images, predictions, CLASSES)


def results_table(results: Results) -> Table:
    """The one table of the demo, with its limits."""
    limits = {'top-1': '>= 93; pruned at most 1.5 less', 'AP50': '>= 0.30'}
    table = Table(title='Digits: MCF with p = 0.4')
    for column in ('', 'dense', 'pruned'):
        table.add_column(column, justify='right' if column else 'left')
    table.add_column('limit')
    for task, networks in asdict(results).items():
        dense, pruned = networks['dense'], networks['pruned']
        rows: list[tuple[str, Sequence[str]]] = []
        for metric in dense['metrics']:
            style = '{:.1f} %' if metric == 'top-1' else '{:.3f}'
            rows.append((metric, [style.format(n['metrics'][metric]) for n in (dense, pruned)]))
        rows.append(('params', [f'{n["params"]:,}' for n in (dense, pruned)]))
        rows.append(('MACs', [f'{n["macs"] / 1e6:.2f} M' for n in (dense, pruned)]))
        speeds = [f'{n["images_per_second"]:,.0f}' for n in (dense, pruned)]
        rows.append(('images/s', speeds))
        for index, (title, cells) in enumerate(rows):
            last = index + 1 == len(rows)
            table.add_row(f'{task} {title}', *cells, limits.get(title, ''), end_section=last)
    return table


def _read_json(path: Path) -> dict | None:
    """Content of a JSON file, None when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write_json(path: Path, content: dict) -> None:
    """Writes a JSON file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))
