"""The pruning of one training run: what a pruning hook does when it decides that it is time."""

from typing import Any

from mmengine.runner import Runner
from torch import Tensor, nn

from mcf_mm.engine import in_run
from mcf_mm.engine.calibration_data import calibration_loader
from mcf_mm.engine.hooks.teacher_hook import TeacherHook
from mcf_mm.engine.networks import averages, cut_networks, unwrapped
from mcf_mm.engine.resume import check_settings, plain_settings
from mcf_mm.engine.runner import require_supported_parallelism
from mcf_mm.pruning import Seen, Structure, Units, build_criterion, compensate, cut, find_units
from mcf_mm.pruning.compensation import check_biases, check_compensation, compensation_observers
from mcf_mm.pruning.criteria.fis import band_limit
from mcf_mm.pruning.criteria.regular import SparseFFN, check_last_step, held_masks, hold
from mcf_mm.pruning.prune import (
    Ratios,
    check_criterion,
    check_parameters,
    check_tied,
    require_units,
    resolve_policy,
)
from mcf_mm.pruning.structure import Sizes, check_ratio, check_seed, check_whole

STATE = 'mcf_mm_pruning'


class PruningRun:
    """A cut in a training run. The arguments are those of :class:`mcf_mm.PruningHook`.

    Attributes:
        structure: What surgery has left; None before.
    """

    def __init__(
        self,
        hook: str,
        criterion: Any,
        ratios: Ratios | None,
        sizes: Sizes | str | None,
        epoch: int,
        num_images: int,
        compensation: str,
        multiple: int,
        teacher: dict | None,
        seed: int,
    ):
        check_compensation(compensation)
        for name, value, least in (
            ('epoch', epoch, 0),
            ('num_images', num_images, 1),
            ('multiple', multiple, 1),
        ):
            check_whole(name, value, least)
        check_seed(seed)
        self.hook = hook
        self.criterion = build_criterion(criterion)
        self.ratios, self.sizes, self.multiple = ratios, sizes, multiple
        self.cut_epoch, self.num_images, self.seed = epoch, num_images, seed
        self.compensation = compensation
        self.teacher = None if teacher is None else TeacherHook(**teacher)
        self.settings = plain_settings(
            criterion=criterion,
            ratios=ratios,
            sizes=sizes,
            epoch=epoch,
            num_images=num_images,
            compensation=compensation,
            multiple=multiple,
            teacher=teacher,
            seed=seed,
        )
        self.structure: Structure | None = None
        self.origin: str | None = None

    @property
    def is_small(self) -> bool:
        """Whether surgery is done."""
        return self.structure is not None

    def look(self, runner: Runner) -> None:
        """Refuse sharded models, and note where the weights come from."""
        require_supported_parallelism(runner.cfg)
        self.origin = runner.cfg.get('load_from')

    def start(self, runner: Runner) -> None:
        """Check and try everything before any time is spent."""
        in_run.check_run(runner, self.hook)
        check_parameters(unwrapped(runner))
        if not self.is_small:
            self.units = require_units(unwrapped(runner))
            self.policy = resolve_policy(self.units, self.ratios, self.sizes, self.multiple)
            check_tied(unwrapped(runner), self.policy)
            check_criterion(self.criterion, self.policy)
            check_biases(self.units, self.policy, self.compensation)
            self.check_epochs(runner)
            self.loader = calibration_loader(runner.cfg, self.num_images, self.seed)
            structure = in_run.first_structure(self.policy, self.units)
            in_run.try_cut(runner, structure, self.loader.dataset)
        if self.teacher is not None:
            self.teacher.check(unwrapped(runner))
            if self.is_small or self.teacher.sha256:
                self.teacher.recall(runner)
            if self.is_small:
                self.teacher.attach(runner)

    def check_epochs(self, runner: Runner) -> None:
        """Check the settings against the length of the run."""
        if runner.max_epochs <= self.cut_epoch:
            raise ValueError(
                f'train_cfg.max_epochs is {runner.max_epochs}: there is no epoch {self.cut_epoch} '
                'at whose start the model could be cut'
            )
        if runner.epoch > self.cut_epoch:
            raise ValueError(
                f'the run goes on in epoch {runner.epoch}, after surgery in epoch '
                f'{self.cut_epoch}, and its checkpoint is not cut: resume a run of this hook, or '
                'load the checkpoint with load_from and resume=False'
            )

    def cut(self, runner: Runner) -> None:
        """Calibrate, choose, compensate and cut."""
        if self.teacher is not None:
            self.teacher.remember(runner)
        self.criterion.prepare(unwrapped(runner))
        observers = self.criterion.observers(self.units, self.policy)
        seen = in_run.calibrate_run(runner, self.loader, observers + self._for_compensation())
        self.structure = self.criterion.select(self.units, self.policy, seen)
        self._finish_cut(runner, seen)

    def _for_compensation(self) -> list:
        chosen = [unit for unit in self.units if unit.name in self.policy]
        return compensation_observers(chosen, self.compensation)

    def _finish_cut(self, runner: Runner, seen: Seen) -> None:
        for network in (unwrapped(runner), *averages(runner)):
            compensate(find_units(network), self.structure, seen, self.compensation)
        in_run.cut_run(runner, self.structure, self.criterion.importance)
        if self.teacher is not None:
            self.teacher.attach(runner)

    def state(self) -> dict:
        """What a checkpoint holds: every setting, and what surgery has done."""
        return {
            'hook': self.hook,
            'settings': self.settings,
            'structure': self.structure.to_json() if self.structure else None,
            'origin': self.origin,
            'teacher': self.teacher and self.teacher.sha256,
        }

    def resume(self, runner: Runner, checkpoint: dict) -> None:
        """Make the model as small as the weights that are about to come."""
        state = checkpoint.get(STATE)
        check_settings(self.hook, self.settings, state)
        self.origin = state['origin']
        if self.teacher is not None:
            self.teacher.sha256 = state.get('teacher')
        if state['structure']:
            self.structure = Structure.from_json(state['structure'])
            cut_networks(runner, lambda model, optimizer: cut(model, self.structure, optimizer))

    def finish(self, runner: Runner) -> None:
        """Write the small network, if there is one."""
        if self.is_small:
            self.write(runner, 'slim')
        else:
            runner.logger.warning(
                f'{self.hook}: training ended in epoch {runner.epoch}, before surgery: the network '
                'is dense and no slim.safetensors is written'
            )

    def write(self, runner: Runner, stem: str) -> None:
        """Write the network, with a header that says how it was made."""
        facts = {**self.settings, 'origin': self.origin, 'epochs': runner.epoch}
        # What was done: a smaller set has fewer to calibrate on.
        number = len(runner.train_dataloader.dataset)
        facts['num_images'] = min(self.num_images, number)
        in_run.write_run(runner, facts, stem)


class MCFRun(PruningRun):
    """MCF in a training run. The arguments are those of :class:`mcf_mm.MCFPruningHook`.

    Attributes:
        sparse: Scores and masks of the FFNs that are sparse already.
    """

    def __init__(
        self,
        hook: str,
        criterion: dict,
        input_ratio: float,
        hidden_ratio: float,
        start_epoch: int,
        last_step: str,
        compensation: str,
        **arguments: Any,
    ):
        check_ratio('input_ratio', input_ratio)
        check_ratio('hidden_ratio', hidden_ratio)
        check_last_step(last_step, compensation)
        check_whole('start_epoch', start_epoch)
        ratios = dict(inputs=input_ratio, hidden=hidden_ratio)
        super().__init__(hook, criterion, ratios, None, 0, compensation=compensation, **arguments)
        self.start_epoch, self.last_step = start_epoch, last_step
        for name in ('criterion', 'ratios', 'sizes', 'epoch'):
            del self.settings[name]
        self.settings |= {name: value for name, value in criterion.items() if name != 'type'}
        self.settings |= dict(
            input_ratio=input_ratio,
            hidden_ratio=hidden_ratio,
            start_epoch=start_epoch,
            last_step=last_step,
        )
        self.sparse: dict[str, SparseFFN] = {}
        # Weights of the model with what is kept of them.
        self.held: list[tuple[nn.Parameter, Tensor]] = []

    def start(self, runner: Runner) -> None:
        super().start(runner)
        if not self.is_small:
            self.held = held_masks(self.units, self.sparse)
            if self.teacher is not None and runner.epoch > self.start_epoch + len(self.policy):
                self.teacher.attach(runner)  # of an ablation that is never cut

    def check_epochs(self, runner: Runner) -> None:
        names = list(self.policy)
        needed = self.start_epoch + len(names) + 1
        if runner.max_epochs < needed:
            raise ValueError(
                f'train_cfg.max_epochs is {runner.max_epochs}: with {len(names)} FFNs and '
                f'start_epoch={self.start_epoch} it must be at least {needed}, one epoch for '
                'each FFN and one to recover'
            )
        started = min(max(runner.epoch - self.start_epoch, 0), len(names))
        if set(self.sparse) != set(names[len(names) - started :]):
            raise ValueError(
                f'epoch {runner.epoch} follows {started} sparsified FFNs, the checkpoint it '
                f'resumes from has {len(self.sparse)}: resume a run of this hook, or load the '
                'checkpoint with load_from and resume=False'
            )

    def begin_epoch(self, runner: Runner) -> None:
        """Sparsify one FFN, or make the model small when all are sparse."""
        names = list(self.policy)
        step = runner.epoch - self.start_epoch
        if step == 0 and self.teacher is not None:
            self.teacher.remember(runner)
        if 0 <= step < len(names):
            self.sparsify(runner, names[-1 - step])
        elif step == len(names) and self.last_step == 'x_transformation':
            self.cut(runner)
        elif step == len(names) and self.teacher is not None:
            self.teacher.attach(runner)

    def sparsify(self, runner: Runner, name: str) -> None:
        """FIS on one FFN, guided through those behind it."""
        ffn = self.units.by_name[name]
        figures = {
            f'band_{layer}': band_limit(getattr(ffn, layer).weight, self.criterion.scale)
            for layer in ('fc1', 'fc2')
        }
        behind = Units(self.units[self.units.index(ffn) :])
        self.criterion.prepare(unwrapped(runner))
        observers = self.criterion.observers(behind, self.policy)
        seen = in_run.calibrate_run(runner, self.loader, observers)
        self.sparse |= self.criterion.sparsify(behind, self.policy, seen, only=name)
        # Once is enough for the average: from here on it only takes in weights that are masked.
        for network in averages(runner):
            hold(held_masks(find_units(network), self.sparse))
        self.held = held_masks(self.units, self.sparse)
        hold(self.held)
        thresholds = self.sparse[name].thresholds
        figures |= {'threshold_fc1': thresholds[0], 'threshold_fc2': thresholds[1]}
        in_run.report(runner, f'MCF: sparsified {name}', figures)

    def cut(self, runner: Runner) -> None:
        """Let the rows of each layer vote (X-Transformation), compensate and cut."""
        seen = in_run.calibrate_run(runner, self.loader, self._for_compensation())
        sparse = {name: self.sparse[name] for name in self.policy}
        self.structure = self.criterion.vote(sparse, self.policy)
        self.sparse, self.held = {}, []
        self._finish_cut(runner, seen)

    def state(self) -> dict:
        sparse = {name: vars(ffn) for name, ffn in self.sparse.items()}
        return {**super().state(), 'sparse': sparse}

    def resume(self, runner: Runner, checkpoint: dict) -> None:
        super().resume(runner, checkpoint)
        device = next(unwrapped(runner).parameters()).device
        self.sparse = {
            name: SparseFFN(**{key: value.to(device) for key, value in parts.items()})
            for name, parts in checkpoint[STATE]['sparse'].items()
        }

    def finish(self, runner: Runner) -> None:
        """Write the small network, or the masked one of an ablation."""
        if self.last_step != 'x_transformation' and len(self.sparse) == len(self.policy):
            self.write(runner, 'masked')
        else:
            super().finish(runner)
