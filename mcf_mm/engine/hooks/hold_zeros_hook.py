"""Keeps a masked network masked while it trains on."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcf_mm.engine.networks import averages, unwrapped
from mcf_mm.pruning import find_ffns
from mcf_mm.pruning.criteria.regular import hold
from mcf_mm.registry import HOOKS


@HOOKS.register_module()
class HoldZerosHook(Hook):
    """Holds the zeros that the weights of FFNs have when training starts.

    For the ablations of MCF (table 3 of the paper): the masked network that
    ``tools/prune.py --last-step crs`` writes is trained on, with its zeros held.

    Raises:
        ValueError: No weight of an FFN is zero.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.HoldZerosHook')]
    """

    def before_train(self, runner: Runner) -> None:
        """Note where the zeros are."""
        self.held = [
            (linear.weight, linear.weight != 0)
            for network in (unwrapped(runner), *averages(runner))
            for ffn in find_ffns(network)
            for linear in (ffn.fc1, ffn.fc2)
        ]
        if all(bool(mask.all()) for _, mask in self.held):
            raise ValueError('HoldZerosHook: no weight of an FFN is zero, there is nothing to hold')

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Set them to zero again."""
        hold(self.held)
