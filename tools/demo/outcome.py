"""What came out of the steps of the main job: figures, limits, pictures and the one table."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
from digits import CLASSES
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from rich.table import Table
from steps import DENSE, STEPS, YOLOS, YOLOS_MCF, Step, read_json

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.analysis.plots import plot_detections, plot_kept_sizes
from mcf_mm.analysis.throughput import measure_throughput
from mcf_mm.engine.config import input_shape
from mcf_mm.files import write_json
from mcf_mm.pruning import find_units

NUM_PICTURES = 8


@dataclass(frozen=True)
class Figures:
    """What is reported of one network.

    Attributes:
        metrics: Top-1 in percent, or AP and AP50 from 0 to 1, by name.
        params: Number of parameters.
        macs: Multiply-accumulate operations for one image.
        images_per_second: At a batch of 64 on this machine; None before it is measured.
    """

    metrics: dict[str, float]
    params: int
    macs: int
    images_per_second: float | None = None

    @property
    def line(self) -> str:
        """The figures in one line, for the user."""
        metrics = [f'{name} {shown(name, value)}' for name, value in self.metrics.items()]
        cost = f'{self.params:,} parameters, {self.macs / 1e6:.2f} M MACs'
        return f'{", ".join(metrics)}, {cost}'


def shown(metric: str, value: float) -> str:
    """A metric as the table has it."""
    return f'{value:.1f} %' if metric == 'top-1' else f'{value:.3f}'


@dataclass(frozen=True)
class Results:
    """The whole outcome by column of the table, of the classifier and the detector."""

    classifier: dict[str, Figures]
    detector: dict[str, Figures]

    def missed(self) -> list[str]:
        """Says which of the demo's limits are missed; empty when all are met."""
        top1 = {name: figures.metrics['top-1'] for name, figures in self.classifier.items()}
        problems = []
        if top1['dense'] < 93:
            problems.append(f'top-1 of the dense network is {top1["dense"]:.1f}, below 93')
        if top1['MCF'] < top1['dense'] - 1.5:
            lost = top1['dense'] - top1['MCF']
            problems.append(f'MCF costs {lost:.1f} points of top-1, more than 1.5')
        for name, figures in self.detector.items():
            if figures.metrics['AP50'] < 0.3:
                ap50 = figures.metrics['AP50']
                problems.append(f'AP50 of the {name} detector is {ap50:.3f}, below 0.30')
        return problems


def read_results(path: Path, wanted: str) -> Results | None:
    """The results that :func:`report` wrote, if they are those of this fingerprint."""
    content = read_json(path)
    if content is None or content.pop('fingerprint', None) != wanted:
        return None
    return Results(
        **{
            task: {name: Figures(**figures) for name, figures in networks.items()}
            for task, networks in content.items()
        }
    )


METRICS = {
    'accuracy/top1': 'top-1',
    'coco/bbox_mAP': 'AP',
    'coco/bbox_mAP_50': 'AP50',
}


class Evaluation:
    """Evaluates the results of steps on the test split, each once.

    Args:
        configs: Configs of all steps by name.
        out_dir: Folder for logs, pictures and ``results.json``.
    """

    def __init__(self, configs: Mapping[str, Config], out_dir: Path):
        self.configs = configs
        self.out_dir = out_dir
        self.runners: dict[str, Runner] = {}
        self.figures: dict[str, Figures] = {}
        # Steps that run side by side may end together; MMEngine's registries are global.
        self.lock = Lock()

    def of(self, step: Step) -> Figures:
        """Figures of a step's result, without speed."""
        with self.lock:
            if step.name not in self.figures:
                config = self._config(step)
                self.out_dir.mkdir(parents=True, exist_ok=True)
                # pycocotools prints tables: one line is enough here.
                with (self.out_dir / 'test.log').open('a') as log, redirect_stdout(log):
                    runner = Runner.from_cfg(config)
                    metrics = runner.test()
                metrics = {METRICS[key]: metrics[key] for key in METRICS if key in metrics}
                cost = count_complexity(runner.model, input_shape(config))
                self.runners[step.name] = runner
                self.figures[step.name] = Figures(metrics, cost.params, cost.macs)
            return self.figures[step.name]

    def _config(self, step: Step) -> Config:
        # What is pruned has written a config of its own; a detector names it as its backbone.
        slim = step.work_dir / 'slim.py'
        config = Config.fromfile(slim) if slim.is_file() else self.configs[step.name].copy()
        config.load_from = str(step.work_dir / step.result)
        config.work_dir = str(self.out_dir / 'logs' / step.name)
        config.resume = False
        config.log_level = 'WARNING'
        # The runs share a process, and with it MMEngine's global instances: they need own names.
        config.experiment_name = f'test_{step.name}'
        config.visualizer.name = f'visualizer_{step.name}'
        return config

    def report(self, wanted: str) -> Results:
        """Times all networks, draws the pictures and writes ``results.json``.

        Args:
            wanted: Fingerprint of the whole, kept in ``results.json``.
        """
        figures: dict[str, dict[str, Figures]] = {'classifier': {}, 'detector': {}}
        for task in figures:
            steps = {step.network[1]: step for step in STEPS if step.network[0] == task}
            plain = {column: self.of(step) for column, step in steps.items()}
            models = {column: self.runners[step.name].model for column, step in steps.items()}
            speeds = measure_throughput(models, (3, *input_shape(self.configs[DENSE.name])))
            for column, row in plain.items():
                figures[task][column] = replace(row, images_per_second=speeds[column])
            if task == 'classifier':
                sizes = [find_units(models[column]).sizes for column in ('MCF', 'dense')]
                plot_kept_sizes(self.out_dir / 'kept_sizes.png', *sizes)
        _plot_scenes(
            self.out_dir,
            {step.network[1]: self.runners[step.name] for step in (YOLOS, YOLOS_MCF)},
        )
        results = Results(**figures)
        write_json(self.out_dir / 'results.json', dict(fingerprint=wanted, **asdict(results)))
        return results


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


COLUMNS = ('dense', 'one shot', 'MCF')
LIMITS = {'top-1': '>= 93; MCF at most 1.5 less', 'AP50': '>= 0.30'}


def results_table(results: Results) -> Table:
    """The one table of the demo, with its limits."""
    table = Table(title='Digits, pruned to as many parameters as MCF leaves at p = 0.4')
    for column in ('', *COLUMNS):
        table.add_column(column, justify='right' if column else 'left')
    table.add_column('limit')
    for task, networks in (
        ('classifier', results.classifier),
        ('detector', results.detector),
    ):
        rows = {
            metric: {name: shown(metric, own.metrics[metric]) for name, own in networks.items()}
            for metric in networks['dense'].metrics
        }
        rows['params'] = {name: f'{own.params:,}' for name, own in networks.items()}
        rows['MACs'] = {name: f'{own.macs / 1e6:.2f} M' for name, own in networks.items()}
        rows['images/s'] = {name: f'{own.images_per_second:,.0f}' for name, own in networks.items()}
        for title, cells in rows.items():
            shown_cells = [cells.get(column, '') for column in COLUMNS]
            last = title == 'images/s'
            table.add_row(f'{task} {title}', *shown_cells, LIMITS.get(title, ''), end_section=last)
    return table
