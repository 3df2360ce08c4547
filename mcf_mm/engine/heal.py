"""Healing of OpenMMLab models on the calibration images of their config."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import distributed, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from mcf_mm.engine.calibration_data import folder_images
from mcf_mm.engine.in_run import report
from mcf_mm.engine.networks import averages, unwrapped
from mcf_mm.pruning import Healed, Healing, find_classifier, find_ffns, heal, split_aside
from mcf_mm.pruning.augmentation import augment
from mcf_mm.pruning.comparison import check_comparable
from mcf_mm.pruning.heal import evaluating
from mcf_mm.pruning.heal_state import read_state
from mcf_mm.pruning.streams import gather

#: Images of a step, where the config has no smaller batches.
BATCH_SIZE = 16


def heal_model(
    student: nn.Module,
    dense: nn.Module,
    cfg: Config,
    loader: DataLoader,
    settings: Mapping[str, Any],
    state_file: str | Path | None = None,
    show: bool = True,
) -> Healed:
    """Heal a pruned classifier of mmpretrain or detector of mmdet, see :func:`mcf_mm.pruning.heal`.

    Every tenth calibration image is kept aside (:func:`mcf_mm.pruning.split_aside`); the others are
    mixed anew in each epoch, in batches of 16 or what the config trains with if that is less, with
    as many others where ``folder`` has them. A
    detector without FFNs outside its backbone is run to the end of the backbone. Its images are
    flipped and not cropped; padding stays at the right and the bottom, and its tokens count in the
    distance as others do.

    Args:
        student: The pruned network.
        dense: The network that it was made of, on the same device.
        cfg: Its config.
        loader: Of :func:`mcf_mm.engine.calibration_data.calibration_loader`. All of its images are
            used, in each process of distributed training.
        settings: As for :class:`mcf_mm.pruning.Healing`.
        state_file: Where the state is kept, see :func:`mcf_mm.pruning.heal`. It stays at the end,
            until the caller has written the result and removes it. Defaults to None.
        show: Whether there is a progress bar, if rich is there. Defaults to True.

    Raises:
        ValueError: As for :func:`mcf_mm.pruning.heal`; there is only one image.
    """
    healing = _healing(dense, settings)
    training, aside = _batches(student, cfg, loader, healing)
    with _bar(show) as progress:
        return heal(
            student,
            dense,
            training,
            aside,
            forward=_forward(dense),
            state_file=state_file,
            keep_state=True,
            progress=progress,
            **asdict(healing),
        )


def check_heal_model(
    dense: nn.Module,
    cfg: Config,
    loader: DataLoader,
    settings: Mapping[str, Any],
    state_file: str | Path | None = None,
) -> None:
    """Check that a network can be healed once it is pruned, before any time is spent.

    One batch is run. Arguments are those of :func:`heal_model`.

    Raises:
        ValueError: It cannot; the state file is of other settings.
    """
    healing = _healing(dense, settings)
    if state_file is not None:
        read_state(state_file, asdict(healing))
    _, aside = _batches(dense, cfg, loader, healing)
    forward = _forward(dense)
    with evaluating(dense):
        batch = next(iter(aside))
        check_comparable(dense, lambda: forward(dense, batch), healing)
    if healing.crop or healing.flip:
        augment(batch['inputs'], torch.Generator(), healing.crop, healing.flip)


def parse_settings(text: str) -> dict[str, Any]:
    """Settings of :class:`mcf_mm.pruning.Healing` from the text of an option.

    Args:
        text: ``NAME=VALUE``, several with commas between them, such as ``'epochs=20,lr=1e-4'``.

    Raises:
        ValueError: It is something else, a name is there twice or unknown, or a value wrong.
    """
    settings: dict[str, Any] = {}
    for part in text.split(','):
        name, _, value = (word.strip() for word in part.partition('='))
        if name in settings:
            raise ValueError(f'--heal names {name} twice: {text!r}')
        readers = [int, float, {'True': True, 'False': False}.__getitem__]
        for read in [str] if name == 'folder' else readers:
            try:
                settings[name] = read(value)
                break
            except (ValueError, KeyError):
                continue
        else:
            raise ValueError(
                '--heal must be minutes=N or epochs=N, with settings such as bf16=True after '
                f'commas, got {part.strip()!r} in {text!r}'
            )
    Healing.of(settings)
    return settings


def check_heal_step(last_step: str, settings: Mapping[str, Any] | None) -> None:
    """Raise a ValueError if a network is to be healed that is not cut (``last_step`` of MCF)."""
    if settings is not None and last_step != 'x_transformation':
        raise ValueError(
            f'heal is for a network that is cut: set last_step to x_transformation, got {last_step}'
        )


def heal_run(
    runner: Runner, dense: nn.Module, loader: DataLoader, settings: Mapping[str, Any]
) -> Healed:
    """Heal the model of a run after surgery; its averages (EMAHook) get the healed weights.

    Each process does the same work, so that none waits for another for minutes; the weights of the
    first one then go to all. The optimizer of the run is left as it is.

    Raises:
        ValueError: As for :func:`heal_model`, in all processes.
    """
    model = unwrapped(runner)
    if settings.get('minutes') is not None:
        runner.logger.warning(
            'pruning: healing by minutes depends on the speed of the machine: the run will not '
            'repeat itself; give epochs if it has to'
        )
    healed, error = None, None
    try:
        healed = heal_model(model, dense, runner.cfg, loader, settings, show=runner.rank == 0)
    except Exception as caught:
        error = caught
    if runner.distributed:
        # First of all, so that no process waits for one that has given up.
        error = next(filter(None, gather(error)), None)
    if error is not None:
        raise error
    if runner.distributed:
        healed = gather(healed)[0]
        for parameter in model.parameters():
            distributed.broadcast(parameter.data, src=0)
    with torch.no_grad():
        for average in averages(runner):
            for name, parameter in average.named_parameters():
                parameter.copy_(model.get_parameter(name))
    runner.logger.info(f'pruning: {healed}')
    figures = dict(heal_before=healed.before.loss, heal_after=healed.after.loss)
    report(runner, 'pruning: loss on the images kept aside', figures)
    return healed


def _healing(dense: nn.Module, settings: Mapping[str, Any]) -> Healing:
    Healing.of(settings)  # which names what is wrong before it is joined with defaults
    return Healing.of({'crop': find_classifier(dense) is not None, **settings})


class _Batches:
    """Preprocessed batches of calibration images, on the device of a model.

    Args:
        loader: Where data set, collation and number of workers come from.
        numbers: Which images.
        model: Has the preprocessor.
        batch_size: Images of a batch.
        others: Images of which as many are drawn anew for each epoch. Defaults to None.
    """

    def __init__(
        self,
        loader: DataLoader,
        numbers: Sequence[int],
        model: nn.Module,
        batch_size: int,
        others: Dataset | None = None,
    ):
        self.loader, self.numbers, self.model = loader, numbers, model
        self.batch_size = batch_size
        self.others = min(len(numbers), 0 if others is None else len(others))
        self.dataset = ConcatDataset([loader.dataset, *([] if others is None else [others])])
        self.is_classifier = find_classifier(model) is not None

    def __len__(self) -> int:
        return -(-(len(self.numbers) + self.others) // self.batch_size)

    def __iter__(self) -> Iterator[dict]:
        return self._load(self.numbers)

    def shuffled(self, generator: torch.Generator) -> Iterator[dict]:
        """The batches of an epoch, of other images each time."""
        numbers = list(self.numbers)
        if self.others:
            first = len(self.loader.dataset)
            drawn = torch.randperm(len(self.dataset) - first, generator=generator)[: self.others]
            numbers += (first + drawn).tolist()
        order = torch.randperm(len(numbers), generator=generator).tolist()
        return self._load([numbers[place] for place in order])

    def _load(self, numbers: Sequence[int]) -> Iterator[dict]:
        starts = range(0, len(numbers), self.batch_size)
        loader = DataLoader(
            self.dataset,
            batch_sampler=[numbers[start : start + self.batch_size] for start in starts],
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            # Worker seeds come from here: the global generator is left alone.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            if self.is_classifier:
                batch = {'inputs': batch['inputs']}  # others have no labels, and none are needed
            data = self.model.data_preprocessor(batch, False)
            samples = data.get('data_samples')
            if (
                not self.is_classifier
                and isinstance(samples, list)
                and all('img_shape' in sample for sample in samples)
            ):
                data['image_sizes'] = [sample.img_shape[:2] for sample in samples]
            yield data


def _batches(
    model: nn.Module, cfg: Config, loader: DataLoader, healing: Healing
) -> tuple[_Batches, _Batches]:
    """Batches to train on, and those kept aside."""
    size = min(BATCH_SIZE, cfg.train_dataloader.get('batch_size') or BATCH_SIZE)
    training, aside = split_aside(range(len(loader.dataset)))
    others = None
    if healing.folder is not None:
        if find_classifier(model) is None:
            raise ValueError(
                f'heal: folder={healing.folder!r} is for classifiers; a detector heals on the '
                'images of its training set'
            )
        others = folder_images(cfg, healing.folder)
    return (
        _Batches(loader, training, model, size, others),
        _Batches(loader, aside, model, size),
    )


class _BackboneDone(Exception):
    """Ends a forward pass whose rest nobody looks at."""


def _forward(dense: nn.Module) -> Callable[[nn.Module, dict], Any]:
    """Runs a network on a preprocessed batch, as far as it is compared."""
    ffns = find_ffns(dense)
    stops = find_classifier(dense) is None and all(ffn.name.startswith('backbone.') for ffn in ffns)

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise _BackboneDone

    def forward(model: nn.Module, batch: dict) -> Any:
        data = {name: value for name, value in batch.items() if name != 'image_sizes'}
        if not (stops and ffns):
            return model(**data, mode='tensor')
        # Not model.backbone(inputs): YOLOS tells its backbone where padding is.
        handle = model.backbone.register_forward_hook(stop)
        try:
            return model(**data, mode='tensor')
        except _BackboneDone:
            return None
        finally:
            handle.remove()

    return forward


@contextmanager
def _bar(show: bool) -> Iterator[Callable[[float, str], None] | None]:
    """A progress bar, as a function of the share that is done and a text."""
    try:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
    except ImportError:
        show = False
    if not show:
        yield None
        return
    columns = ('{task.description}', BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task('heal', total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=f'heal: {text}')
