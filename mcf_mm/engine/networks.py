"""The networks that a run holds: the model, inside its wrapper or not, and its averages."""

import gc
from collections.abc import Callable

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer


def unwrapped(runner: Runner) -> nn.Module:
    """The model itself, without DistributedDataParallel around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def averages(runner: Runner) -> list[nn.Module]:
    """The networks that EMAHooks keep."""
    return [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]


def cut_networks(runner: Runner, cut: Callable[[nn.Module, Optimizer | None], None]) -> None:
    """Does surgery on the model with the optimizer's state, and on its averages.

    Args:
        runner: The run.
        cut: Shrinks the parameters of a network in place, with the state of an optimizer that may
            be None.
    """
    model, wrapped = unwrapped(runner), is_model_wrapper(runner.model)
    if wrapped:
        # The reducer of DistributedDataParallel remembers the old sizes, and keeps alive the
        # autograd nodes that do: it has to be gone before the parameters shrink.
        runner.model = model
        gc.collect()
    cut(model, runner.optim_wrapper.optimizer)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            average = hook.ema_model
            cut(average.module, None)
            if average.update_buffers:
                # It updates through this dictionary of tensors, which are of the old sizes.
                average.avg_parameters = average.module.state_dict()
    if wrapped:
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
