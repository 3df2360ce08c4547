"""Trains shared weights on random policies within a budget, before a policy is searched."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcf_mm.engine.random_policies import RandomPolicies
from mcf_mm.pruning.budget import Budget
from mcf_mm.registry import HOOKS

#: Where a checkpoint has the state of the hook.
STATE = 'random_policies'


@HOOKS.register_module()
class RandomPolicyHook(Hook):
    """Each iteration trains the part of the network that a random policy on the budget keeps.

    The weights stay dense and are shared by all policies; afterwards policies that are masked
    (``tools/search.py --score masked``) do better, and differ more by what is pruned than by what
    was never trained without it. Optional, as in Hou and Kung (arXiv 2201.00043), whose release
    does without. Checkpoints are those of the dense network.

    Args:
        budget: What each policy costs, such as ``'macs=60%'``.
        criterion: What goes first, see :func:`mcf_mm.pruning.prune`. Defaults to ``'hsic'``.
        kinds: What is pruned. Defaults to heads, hidden units and tokens, where the network has
            them.
        num_images: Calibration images. Defaults to 1024.
        seed: Chooses images and policies. Defaults to 0.

    Raises:
        ValueError: An argument is out of range, or no policy meets the budget.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.RandomPolicyHook', budget='macs=60%')]
    """

    #: Before hooks that look at the network or average it.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        budget: Budget,
        criterion: Any = 'hsic',
        kinds: Sequence[str] | None = None,
        num_images: int = 1024,
        seed: int = 0,
    ):
        self.policies = RandomPolicies(budget, criterion, kinds, num_images, seed)

    def before_train(self, runner: Runner) -> None:
        """Calibrate, before any time is spent on training."""
        self.policies.start(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the order in which elements go, so that ``--resume`` goes on with it."""
        checkpoint[STATE] = self.policies.scores

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """On ``--resume``, take the order of the run that is gone on with.

        Raises:
            ValueError: The checkpoint is of a run without this hook.
        """
        if runner._resume:
            if STATE not in checkpoint:
                raise ValueError(
                    'the checkpoint is of a run without RandomPolicyHook: start with load_from and '
                    'resume=False'
                )
            self.policies.scores = checkpoint[STATE]

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Take away what the policy of this iteration drops."""
        self.policies.apply(runner.iter)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Put it back, before anything looks at the network."""
        self.policies.undo()
