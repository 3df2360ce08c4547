"""MCF in a training run: what its hook does when it decides that it is time."""

from typing import Any

from mmengine.runner import Runner
from torch import Tensor, nn

from mcf_mm.engine import in_run
from mcf_mm.engine.heal import check_heal_step
from mcf_mm.engine.networks import averages, unwrapped
from mcf_mm.engine.pruning_run import STATE, PruningRun
from mcf_mm.pruning import Units, find_units
from mcf_mm.pruning.advice import warn_few_tokens
from mcf_mm.pruning.criteria.fis import band_limit
from mcf_mm.pruning.criteria.regular import SparseFFN, check_last_step, held_masks, hold
from mcf_mm.pruning.structure import check_ratio, check_whole


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
        check_heal_step(last_step, arguments.get('heal'))
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
        if step == 0 and self.keeper is not None:
            self.keeper.remember(runner)
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
        seen = in_run.calibrate_run(runner, in_run.shown(runner, self.loader), observers)
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
        batches = in_run.shown(runner, self.loader)
        seen = in_run.calibrate_run(runner, batches, self._for_compensation())
        warn_few_tokens(self.units, self.policy, seen)
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
