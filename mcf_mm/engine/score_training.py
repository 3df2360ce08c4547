"""Lets parameters outside the model train in a run: their rate, their penalty, their processes."""

from collections.abc import Callable, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

#: Numbers of a parameter group that grow with its learning rate; OneCycleLR has the last two.
_RATES = ('lr', 'initial_lr', 'max_lr', 'min_lr')
#: Lists of schedulers with one number for each parameter group.
_LISTS = ('base_values', '_last_value', 'min_values')


def add_group(
    runner: Runner, parameters: Sequence[nn.Parameter], like: Sequence[Tensor], lr_mult: float
) -> None:
    """Add a parameter group without weight decay, and make the schedulers schedule it.

    The Runner has built them by now, and they pair their base values with the groups that were
    there then: each gets one more. The group is what it would be, had it been there then.

    Args:
        runner: A run with one optimizer.
        parameters: What is to be trained.
        like: Weights; of their groups the one with the largest rate is the model of the new one.
            Of all groups if none is trained.
        lr_mult: Rate of the new group over that of its model.
    """
    optimizer = runner.optim_wrapper.optimizer
    weights = {id(weight) for weight in like}
    groups = optimizer.param_groups
    own = [n for n, group in enumerate(groups) if any(id(p) in weights for p in group['params'])]
    rate = [group.get('initial_lr', group['lr']) for group in groups]
    index = max(own or range(len(groups)), key=lambda number: rate[number])
    model = groups[index]
    schedulers = runner.param_schedulers or []
    # What the optimizer and schedulers have there; constructors note names and such as well.
    known = {*optimizer.defaults, *_RATES, *(scheduler.param_name for scheduler in schedulers)}
    group = {
        key: value for key, value in model.items() if key in known or key.startswith('initial_')
    }
    if 'param_names' in model:  # all groups of an optimizer have them, or none
        group['param_names'] = [f'scores.{number}' for number in range(len(parameters))]
    for key in _RATES:
        if key in group:
            group[key] = group[key] * lr_mult
    optimizer.add_param_group({**group, 'params': list(parameters), 'weight_decay': 0.0})
    for scheduler in schedulers:
        factor = lr_mult if scheduler.param_name == 'lr' else 1
        for name in _LISTS:
            if (values := getattr(scheduler, name, None)) is not None:
                setattr(scheduler, name, [*values, _times(values[index], factor)])


def _times(value, factor: float):
    """A rate times a factor; betas, which have none, stay what they are."""
    return value if factor == 1 else value * factor


def remove_group(runner: Runner, parameters: Sequence[nn.Parameter]) -> None:
    """Undo :func:`add_group`, so that optimizer and schedulers are again those of the config."""
    optimizer = runner.optim_wrapper.optimizer
    gone = {id(parameter) for parameter in parameters}
    index = next(
        number
        for number, group in enumerate(optimizer.param_groups)
        if any(id(parameter) in gone for parameter in group['params'])
    )
    del optimizer.param_groups[index]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
    for scheduler in runner.param_schedulers or []:
        for name in _LISTS:
            if (values := getattr(scheduler, name, None)) is not None:
                setattr(scheduler, name, [*values[:index], *values[index + 1 :]])


def add_loss(model: nn.Module, name: str, loss: Callable[[], Tensor]) -> RemovableHandle:
    """Let a model of MMEngine give one more loss, until the handle is removed.

    As a part of the loss it is scaled, accumulated, clipped and logged as all others are.

    Args:
        model: The model without a wrapper.
        name: What to call it, ``'loss_...'``.
        loss: Computes it, a scalar.
    """

    def add(module, args, arguments, losses):
        if arguments.get('mode') != 'loss' or not isinstance(losses, dict):
            return losses
        return {**losses, name: loss()}

    return model.register_forward_hook(add, with_kwargs=True)


def share_gradients(
    wrapper: OptimWrapper, parameters: Sequence[nn.Parameter]
) -> Callable[[], None]:
    """Average the gradients of parameters over all processes before each step of an optimizer.

    DistributedDataParallel does that for what is in its module. It is done before the wrapper
    clips gradients and looks for overflow, where all processes must see the same numbers; a hook
    of the optimizer itself would come after that.

    Returns:
        Ends it.
    """
    step = wrapper.step

    def shared_step(**arguments) -> None:
        own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in own])
        all_reduce(flat, 'mean')
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        step(**arguments)

    def end() -> None:
        del wrapper.step  # that of its class remains

    wrapper.step = shared_step
    return end
