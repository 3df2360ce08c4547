"""Random policies on a run's network, the work of RandomPolicyHook."""

import random
from collections.abc import Sequence
from typing import Any

from mmengine.runner import Runner
from torch import Tensor

from mcf_mm.engine import in_run
from mcf_mm.engine.calibration_data import calibration_loader
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import model_costs, unwrapped
from mcf_mm.pruning import Gates, Seen, Structure, build_criterion
from mcf_mm.pruning.budget import Budget
from mcf_mm.pruning.criteria import Criterion, FunctionCriterion, choose
from mcf_mm.pruning.policy import without_tokens
from mcf_mm.pruning.prune import check_criterion, require_units
from mcf_mm.pruning.structure import check_seed, check_whole
from mcf_mm.search.shape import Shape

#: Scores by unit and kind.
Importance = dict[str, dict[str, Tensor]]


class RandomPolicies:
    """Puts one policy after the other on a network, with gates, and takes it away again.

    Args:
        budget: See :class:`mcf_mm.engine.hooks.random_policy_hook.RandomPolicyHook`.
        criterion: The same.
        kinds: The same.
        num_images: The same.
        seed: The same.

    Attributes:
        scores: Importance by unit and kind, of the weights that the run began with; None before.

    Raises:
        ValueError: An argument is out of range, or the criterion gives no scores.
    """

    def __init__(
        self,
        budget: Budget,
        criterion: Any,
        kinds: Sequence[str] | None,
        num_images: int,
        seed: int,
    ):
        check_whole('num_images', num_images, 1)
        check_seed(seed)
        self.budget, self.criterion, self.kinds = budget, build_criterion(criterion), kinds
        if type(self.criterion).select is not Criterion.select:
            raise ValueError(
                f'criterion must score elements one by one, such as hsic, fisher or activation; '
                f'{type(self.criterion).__name__} chooses sets of them'
            )
        self.num_images, self.seed = num_images, seed
        self.scores: Importance | None = None

    def start(self, runner: Runner) -> None:
        """Look at the network, and calibrate on it unless the run is resumed.

        Raises:
            ValueError: No policy meets the budget, or the criterion cannot score a kind.
        """
        model = unwrapped(runner)
        self.units = require_units(model)
        costs = model_costs(model, input_shape(runner.cfg))
        self.shape = Shape(self.units, costs, self.budget, self.kinds, floors=self.criterion.floors)
        # With the largest shares: what can be pruned, whatever is drawn.
        full = without_tokens(self.shape.sizes(dict.fromkeys(self.shape.names, 1.0)))
        check_criterion(self.criterion, full)
        self.gates = Gates(self.units, {kind for own in full.values() for kind in own})
        if self.scores is None:
            self.criterion.prepare(model)
            observers = self.criterion.observers(self.units, full)
            size = 16 if any(observer.needs_gradients for observer in observers) else 64
            loader = calibration_loader(runner.cfg, self.num_images, self.seed, size)
            seen = in_run.calibrate_run(
                runner, in_run.shown(runner, loader), observers, self.criterion.labels
            )
            self.criterion.select(self.units, full, seen)
            self.scores = self.criterion.importance
        # Training changes what is important, and the order must not change with it.
        self.order = FunctionCriterion(lambda unit, kind, seen: self.scores[unit.name][kind])

    def sizes(self, number: int) -> dict[str, dict[str, int]]:
        """The policy of an iteration: the same in all processes and after a resumed start."""
        drawn = random.Random(f'{self.seed} {number}')
        return self.shape.sizes({name: drawn.random() for name in self.shape.names})

    def apply(self, number: int) -> None:
        """Put the policy of an iteration on the network."""
        structure = choose(self.order, self.units, self.sizes(number), Seen({}))
        self.gates.set_structure(
            Structure({name: kinds for name, kinds in structure.items() if 'tokens' not in kinds})
        )
        self.gates.attach()
        for unit in self.units.tokens:
            if unit.name in structure:
                unit.keep(len(structure[unit.name]['tokens']))

    def undo(self) -> None:
        """Let the network be whole again."""
        self.gates.remove()
        for unit in self.units.tokens:
            unit.keep(unit.arriving)
