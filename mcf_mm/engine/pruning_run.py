"""The pruning of one training run: what a pruning hook does when it decides that it is time."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mcf_mm.engine import in_run
from mcf_mm.engine.calibration_data import calibration_loader, tensor_forward
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.heal import check_heal_model, heal_run
from mcf_mm.engine.hooks.teacher_hook import TeacherHook
from mcf_mm.engine.networks import (
    averages,
    check_latency_shape,
    cut_networks,
    model_costs,
    unwrapped,
)
from mcf_mm.engine.resume import check_settings, plain_settings
from mcf_mm.engine.runner import require_supported_parallelism
from mcf_mm.engine.slim_files import write_run
from mcf_mm.pruning import (
    Healing,
    Seen,
    Structure,
    build_criterion,
    compensate,
    cut,
    find_units,
)
from mcf_mm.pruning.advice import asked_kinds, warn_few_tokens, warn_left_alone
from mcf_mm.pruning.budget import Budget, budget_kind, within_budget
from mcf_mm.pruning.compensation import check_biases, check_compensation, compensation_observers
from mcf_mm.pruning.criteria import choose
from mcf_mm.pruning.distances import check_token_outputs
from mcf_mm.pruning.measure import Kept, Probe
from mcf_mm.pruning.observers import Observer
from mcf_mm.pruning.policy import without_tokens
from mcf_mm.pruning.prune import (
    Ratios,
    check_criterion,
    check_parameters,
    check_tied,
    open_policy,
    require_units,
    resolve_policy,
)
from mcf_mm.pruning.streams import gather
from mcf_mm.pruning.structure import Sizes, check_seed, check_whole
from mcf_mm.pruning.swap import copies
from mcf_mm.search import read_latency

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
        compensation: str | None,
        multiple: int,
        teacher: dict | None,
        seed: int,
        heal: dict | None = None,
        budget: Budget | None = None,
        kinds: Sequence[str] | None = None,
        latency: str | None = None,
    ):
        if budget is not None and (ratios is not None or sizes is not None):
            raise ValueError('give one of budget, ratios and sizes')
        if budget is None and kinds is not None:
            raise ValueError(f'kinds are for a budget: give one, or leave out kinds={kinds}')
        if (latency is None) == (budget is not None and budget_kind(budget) == 'latency'):
            raise ValueError(
                'a budget of latency needs latency=FILE with measured times (tools/prune.py '
                f'--latency writes one), and no other budget does: got budget={budget}, '
                f'latency={latency}'
            )
        for name, value, least in (
            ('epoch', epoch, 0),
            ('num_images', num_images, 1),
            ('multiple', multiple, 1),
        ):
            check_whole(name, value, least)
        check_seed(seed)
        self.hook = hook
        if criterion is None:
            criterion = 'fisher' if budget is None else 'obs'
        self.criterion = build_criterion(criterion)
        if compensation is None:
            compensation = self.criterion.compensation
        check_compensation(compensation)
        self.budget, self.kinds, self.latency = budget, kinds, latency
        self.ratios, self.sizes, self.multiple = ratios, sizes, multiple
        self.cut_epoch, self.num_images, self.seed = epoch, num_images, seed
        self.compensation = compensation
        self.teacher = None if teacher is None else TeacherHook(**teacher)
        self.heal = None
        if heal is not None:
            Healing.of(heal)
            self.heal = {'seed': seed, **heal}
        # Remembers the dense network, whether or not it teaches in the epochs that remain.
        self.keeper = self.teacher or (heal and TeacherHook(logits=0.0, blocks=1.0))
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
            heal=heal,
            budget=budget,
            kinds=kinds,
            latency=latency,
        )
        self.healed: dict | None = None
        self.allocation: str | None = None  # of obs: how losses were found
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
            self.policy, trial = self.plan_trial(unwrapped(runner), runner.cfg)
            check_tied(unwrapped(runner), self.policy)
            check_criterion(self.criterion, self.policy, self.compensation)
            self.criterion.prepare(unwrapped(runner))
            check_biases(self.units, self.policy, self.compensation)
            self.check_epochs(runner)
            for argument in ('heal', 'teacher'):
                if getattr(self, argument) is not None:
                    pruned = [name for name, own in self.policy.items() if 'tokens' in own]
                    check_token_outputs(self.units, pruned, argument)
            if self.budget is not None:
                warn_left_alone(self.units, self.kinds or self.criterion.budget_kinds)
            elif asked := asked_kinds(self.ratios) & {'heads', 'qk', 'v'}:
                warn_left_alone(self.units, asked)
            observers = self.criterion.observers(self.units, without_tokens(self.policy))
            felt = any(observer.needs_gradients for observer in observers)
            size = 16 if felt else 64  # gradients keep the activations of a batch
            self.loader = calibration_loader(runner.cfg, self.num_images, self.seed, size)
            structure = in_run.first_structure(trial, self.units)
            if self.heal is not None:
                check_heal_model(unwrapped(runner), runner.cfg, self.loader, self.heal)
            in_run.try_cut(runner, structure, self.loader.dataset)
        if self.teacher is not None:
            self.teacher.check(unwrapped(runner))
        # Healing needs the dense network until surgery, a teacher until the end.
        keeper = self.teacher if self.is_small else self.keeper
        if keeper is not None and (self.is_small or keeper.sha256):
            keeper.recall(runner)
        if self.teacher is not None and self.is_small:
            self.teacher.attach(runner)

    def plan_trial(self, model: nn.Module, cfg: Config) -> tuple[dict, dict]:
        """What is to be pruned, and sizes to try surgery with before those of a budget are known.

        Args:
            model: The dense network.
            cfg: Its config, which says the size of images.

        Returns:
            Two policies, the same one without a budget.
        """
        units = require_units(model)
        if self.budget is None:
            policy = resolve_policy(units, self.ratios, self.sizes, self.multiple)
            return policy, policy
        self.costs = model_costs(model, input_shape(cfg))
        if self.latency is not None:
            # Of the machine that the small network is for, which need not be this one.
            self.costs.latency = read_latency(self.latency, device=None)
            self.costs.latency.check(units, self.latency)
            check_latency_shape(self.costs.latency, input_shape(cfg), self.latency)
        kinds = open_policy(
            units, self.costs, self.budget, self.kinds, self.criterion, self.multiple
        )
        named = sorted({kind for own in kinds.values() for kind in own})
        return kinds, within_budget(units, self.costs, self.budget, named, self.criterion.floors)

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
        """Calibrate, choose, compensate, cut and heal."""
        if self.keeper is not None:
            self.keeper.remember(runner)
        self.criterion.prepare(unwrapped(runner))
        observers = self.criterion.observers(self.units, without_tokens(self.policy))
        observers = observers + self._for_compensation(observers)
        batches = Kept(in_run.shown(runner, self.loader))
        seen = in_run.calibrate_run(runner, batches, observers, self.criterion.labels)
        warn_few_tokens(self.units, self.policy, seen)
        if self.budget is not None:
            forward = tensor_forward(unwrapped(runner))
            probe = Probe(unwrapped(runner), batches.first, forward, self.compensation)
            plan = self.criterion.plan(
                self.units, self.policy, seen, self.costs, self.budget, probe=probe
            )
            # Each process has measured on its own images; one of them decides.
            self.policy = gather(plan)[0] if runner.distributed else plan
        seen = self.criterion.turn(self.units, without_tokens(self.policy), seen)
        for network in averages(runner):
            self.criterion.turn_as_well(find_units(network))
        in_run.forget_state(runner, self.units, self.criterion.turned)
        self.structure = choose(self.criterion, self.units, self.policy, seen)
        self._finish_cut(runner, seen)

    def _for_compensation(self, observers: Sequence[Observer] = ()) -> list:
        return compensation_observers(self.units, self.policy, self.compensation, observers)

    def _finish_cut(self, runner: Runner, seen: Seen) -> None:
        networks = (unwrapped(runner), *averages(runner))
        dense = []
        for network in networks:
            if self.compensation == 'sequential':
                dense.append(copies(network, self.structure))
            compensate(find_units(network), self.structure, seen, self.compensation)
        curves = getattr(self.criterion, 'curves', None)
        self.allocation = None if curves is None else curves.facts['curves']
        in_run.cut_run(runner, self.structure, self.criterion.importance, curves)
        for network, own in zip((unwrapped(runner), *averages(runner)), dense, strict=False):
            in_run.solve_run(runner, network, own, self.loader, self.structure)
        if self.heal is not None:
            with in_run.unchanged_generators():  # which building a network draws from
                dense = self.keeper.network(runner)
            self.healed = heal_run(runner, dense, self.loader, self.heal).facts()
        if self.teacher is not None:
            self.teacher.attach(runner)

    def state(self) -> dict:
        """What a checkpoint holds: every setting, and what surgery has done."""
        return {
            'hook': self.hook,
            'settings': self.settings,
            'structure': self.structure.to_json() if self.structure else None,
            'origin': self.origin,
            'teacher': self.keeper and self.keeper.sha256,
            'healed': self.healed,
            'allocation': self.allocation,
        }

    def resume(self, runner: Runner, checkpoint: dict) -> None:
        """Make the model as small as the weights that are about to come."""
        state = checkpoint.get(STATE)
        check_settings(self.hook, self.settings, state)
        self.origin = state['origin']
        if self.keeper is not None:
            self.keeper.sha256 = state.get('teacher')
        self.healed, self.allocation = state.get('healed'), state.get('allocation')
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
        facts['allocation'] = self.allocation
        if self.healed is not None:
            facts['heal'] = {**self.heal, **self.healed}
        write_run(runner, facts, stem)
