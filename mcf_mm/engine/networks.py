"""Networks of a config and of a run: built, wrapped or not, their averages, cut alike."""

import copy
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from mcf_mm.analysis.complexity import masked, num_channels, resized, tensor_arguments
from mcf_mm.analysis.throughput import scatter_inputs
from mcf_mm.models.strides import check_strides
from mcf_mm.models.widths import check_widths
from mcf_mm.pruning import Costs, measure_costs, uniform
from mcf_mm.pruning.prune import require_units
from mcf_mm.registry import HOOKS, MODELS, split_type
from mcf_mm.search import Latency, measure_latency, read_latency
from mcf_mm.weights.slim_config import PRUNING_HOOKS


def build_model(config: Config) -> nn.Module:
    """Build the network of a config of mmpretrain or mmdet, without loading weights.

    Raises:
        ValueError: The config has no model, or see :func:`mcf_mm.models.widths.check_widths` and
            :func:`mcf_mm.models.strides.check_strides`.
    """
    if not config.get('model'):
        raise ValueError(f'{config.filename or "the config"} has no model')
    # For this one call only: a notebook may go on with a config of another library.
    model = copy.deepcopy(config.model)
    # As the Runner does: mmpretrain's bases have the preprocessor beside the model.
    if config.get('data_preprocessor'):
        # A copy: models change it, and the config of a run is noted in its checkpoints.
        model.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        network = MODELS.build(model)
    check_widths(network, config.model)
    check_strides(network, config.model)
    return network


def model_costs(model: nn.Module, shape: tuple[int, int]) -> Costs:
    """Costs of a network for any sizes of its units, see :func:`mcf_mm.pruning.measure_costs`.

    Args:
        model: mmpretrain classifier or mmdet detector. It stays as it is.
        shape: Height and width of an image in pixels.
    """
    arguments = tensor_arguments(model, shape)

    def forward(network: nn.Module) -> Any:
        device = next(network.parameters()).device
        return network(torch.zeros(1, num_channels(network), *shape, device=device), **arguments)

    return measure_costs(model, forward)


def model_latency(
    model: nn.Module,
    shape: tuple[int, int],
    path: str | Path | None = None,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Times of a network for any sizes of its units, from a file or measured here.

    Args:
        model: mmpretrain classifier or mmdet detector. It stays as it is.
        shape: Height and width of an image in pixels.
        path: JSON file of measured times. It is read if it is there, whatever machine it was
            measured on, and written if not. Defaults to None: measured, not written.
        batch: Images at a time. Defaults to 1.
        progress: See :func:`mcf_mm.search.measure_latency`.

    Raises:
        ValueError: The file is of another network, size of image or batch, or is no such file.
    """
    wanted = {'shape': list(shape), 'batch': batch}
    device = next(model.parameters()).device
    if path is not None and Path(path).exists():
        latency = read_latency(path, device, strict=False)
        latency.check(require_units(model), str(path))
        found = {key: latency.facts.get(key) for key in wanted}
        if found != wanted:
            raise ValueError(
                f'{path} has times of {found}, and {wanted} are asked for: name another file'
            )
        print(f'times from {path}: {latency.facts["device"]}, {latency.facts["threads"]} threads')
        return latency
    arguments = tensor_arguments(model, shape)
    images = torch.zeros(batch, num_channels(model), *shape, device=device)
    latency = measure_latency(
        model, lambda network: network(images, **arguments), progress=progress
    )
    latency.facts |= wanted
    if path is not None:
        latency.save(path)
        print(f'wrote {path}')
    return latency


def check_latency_shape(latency: Latency, shape: tuple[int, int], source: str) -> None:
    """Check that times are of the images of a config, where they say of which they are.

    Raises:
        ValueError: They are of another size.
    """
    found = latency.facts.get('shape')
    if found is None:
        warnings.warn(
            f'{source} does not say of which size of image its times are, the config has '
            f'{list(shape)}',
            stacklevel=2,
        )
    elif list(found) != list(shape):
        raise ValueError(
            f'{source} has times of images of {found}, the config has {list(shape)}: measure again'
        )


def pruned_network(config: Config, model: nn.Module, ratio: float | None = None):
    """The network that the pruning hook of a config will leave; its weights mean nothing.

    Args:
        config: Config with a pruning hook, or without one where ``ratio`` is given.
        model: Its dense network, which stays as it is.
        ratio: Share of inputs and hidden units to drop, instead of what the hook says.

    Returns:
        The network, None without hook and ratio. Where MCF ends with masks (``last_step='crs'``)
        its parameters count that are not zero: see :func:`mcf_mm.analysis.complexity.masked`.

    Raises:
        ValueError: An argument of the hook is out of range or does not fit the network.
    """
    if ratio is not None:
        return resized(model, uniform(require_units(model), ratio))
    for hook in config.get('custom_hooks') or []:
        if split_type(hook['type'])[1] in PRUNING_HOOKS:
            # Built, because the class alone knows its defaults and checks its arguments.
            _, name = split_type(hook['type'])
            pruning = HOOKS.build(dict(hook, type=f'mcf_mm.{name}')).pruning
            # Of a budget the sizes are known after calibration: the cost is the same.
            _, policy = pruning.plan_trial(model, config)
            last_step = getattr(pruning, 'last_step', 'x_transformation')
            if last_step == 'x_transformation':
                return resized(model, policy)
            if last_step == 'crs':
                return masked(model, policy)
            return copy.deepcopy(model)  # zeros of FIS cost as much as other numbers
    return None


def dense_and_pruned(first: Config, second: Config | None = None) -> dict[str, nn.Module]:
    """Builds the two networks to compare; no weights are loaded, for they do not change the speed.

    Args:
        first: Config of the first network, built as it stands.
        second: Config of the second; one with ``mcf_mm.MCFPruningHook`` stands for the network
            that the hook leaves. Defaults to the first config, which must have the hook then.

    Returns:
        The networks by the names ``'A'`` and ``'B'``.

    Raises:
        ValueError: ``second`` is not given and ``first`` has no pruning hook.
    """
    models = {'A': build_model(first), 'B': build_model(second or first)}
    pruned = pruned_network(second or first, models['B'])
    if second is None and pruned is None:
        raise ValueError(
            'the config has no mcf_mm.MCFPruningHook in custom_hooks that would say what to '
            'compare it with: name a second config'
        )
    if pruned is not None:
        models['B'] = pruned
    for model in models.values():
        scatter_inputs(model)
    return models


def unwrapped(runner: Runner) -> nn.Module:
    """The model itself, without DistributedDataParallel around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def averages(runner: Runner) -> list[nn.Module]:
    """The networks that EMAHooks keep."""
    return [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]


def cut_networks(runner: Runner, cut: Callable[[nn.Module, Optimizer | None], None]) -> None:
    """Do surgery on the model with the optimizer's state, and on its averages.

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
