"""Builds Runners whose input is checked, in one process or several."""

import logging
import re
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger, print_log
from mmengine.registry import MODEL_WRAPPERS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mcf_mm.engine.config import hook_types
from mcf_mm.engine.networks import unwrapped
from mcf_mm.engine.terminal import shorten
from mcf_mm.models.slim import SlimUnits
from mcf_mm.models.strides import check_strides
from mcf_mm.models.widths import check_widths
from mcf_mm.registry import is_pretrained, own_scope, split_type
from mcf_mm.weights.check import describe_new, fits, matches
from mcf_mm.weights.checkpoint import RESIZED, put_weights, read_state_dict, readable
from mcf_mm.weights.unwrap import unwrap

#: Classes whose errors may name no image or annotation, and the scopes that find them. There is
#: a class of the same name here for each.
CHECKED = {
    'CocoDataset': ('', 'mmdet'),
    'CocoMetric': ('', 'mmdet'),
    'LoadImageFromFile': ('', 'mmdet', 'mmpretrain', 'mmcv', 'mmengine'),
}


class CheckedRunner(Runner):
    """MMEngine's Runner, which stops where weights do not fit.

    MMEngine would say so in a warning and go on with random weights. For training a head of another
    task may be new; whatever starts anew is named in the log.
    """

    #: Whether this is a run that trains: then the head may be new.
    _trains = False

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """As MMEngine's, with a terminal that shows no dump of the config."""
        logger = super().build_logger(*args, **kwargs)
        shorten(logger)
        return logger

    def train(self) -> nn.Module:
        """As MMEngine's."""
        self._trains = True
        return super().train()

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = False,
        revise_keys: Any = None,
    ) -> dict:
        """Load all weights of the model, or raise a ValueError that names what does not fit."""
        with readable(filename):
            checkpoint = _load_checkpoint(filename, map_location=map_location)
        # Here pruning hooks cut the model to the sizes of a checkpoint that is resumed.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        weights, note = unwrap(checkpoint)
        for pattern, replacement in revise_keys or ():
            weights = {re.sub(pattern, replacement, key): part for key, part in weights.items()}
        starts = self._trains and not self._resume
        anew = put_weights(unwrapped(self), weights, str(filename), allow_new_head=starts)
        self._has_loaded = True
        for line in (note, describe_new(anew)):
            if line:
                self.logger.warning(f'{filename}: {line}')
        self.logger.info(f'loaded all other weights from {filename}')
        return checkpoint

    def _init_model_weights(self) -> None:
        """Check what MMEngine is about to load into parts of the model, then as MMEngine."""
        check_pretrained(unwrapped(self))
        super()._init_model_weights()


def check_pretrained(model: nn.Module) -> None:
    """Check the checkpoints that ``init_cfg`` names for parts of a model.

    MMEngine loads what fits of them and leaves the rest random, with a warning among others. Slim
    backbones check theirs themselves; classes with ``convert_weights`` rename them first.

    Raises:
        ValueError: Most weights of a part or whole layers are not in its checkpoint, have another
            size, are left over, or are NaN or infinite.
    """
    for name, module in model.named_modules():
        init_cfg = getattr(module, 'init_cfg', None)
        for part in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            skip = isinstance(module, SlimUnits) or getattr(module, 'convert_weights', False)
            if is_pretrained(part) and not skip:
                _check_part(module, name or type(module).__name__, part)


def _check_part(module: nn.Module, name: str, init_cfg: dict) -> None:
    source = init_cfg['checkpoint']
    weights = read_state_dict(source)
    prefix = (init_cfg.get('prefix') or '').removesuffix('.')
    start = f'{prefix}.' if prefix else ''
    there = {
        key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)
    }
    own = dict(module.named_parameters())
    missing = [key for key in own if key not in there]
    if 2 * len(missing) > len(own):
        raise ValueError(
            f'init_cfg of {name}: {source} lacks {len(missing)} of the {len(own)} '
            f'weights of {type(module).__name__}, the first {missing[0]!r}; it has keys such as '
            f'{list(weights)[:3]}. Convert it with tools/convert_checkpoint.py or set the prefix'
        )
    # What other tasks add (a norm for each output, tokens) may be new; a layer among many may not.
    layers, own_layers = ({_numberless(key) for key in keys} for keys in (there, own))
    layers_missing = [key for key in missing if _numberless(key) in layers and key in own]
    left_over = [key for key in there if key not in own and _numberless(key) in own_layers]
    unlike = [
        key
        for key, value in own.items()
        if key in there and not fits(value, there[key], may_be_resized=matches(key, RESIZED))
    ]
    for keys, shapes, text in (
        (unlike, [there, own], 'has {} weights of another size, {} is {}, not {}'),
        (layers_missing, [own], 'lacks layers, {} weights in all, the first {}, {}'),
        (left_over, [there], 'has more layers, {} weights in all, the first {}, {}'),
    ):
        if keys:
            sizes = [tuple(part[keys[0]].shape) for part in shapes]
            raise ValueError(
                f'init_cfg of {name}: {source} does not fit {type(module).__name__}: it '
                f'{text.format(len(keys), keys[0], *sizes)}. Use the width, depth and patch size '
                'that it was trained with'
            )
    if missing:
        print_log(
            f'init_cfg of {name}: {source} lacks {len(missing)} of the weights of '
            f'{type(module).__name__}, which start anew: {", ".join(missing[:5])}',
            logger='current',
            level=logging.WARNING,
        )


def _numberless(name: str) -> str:
    """Where a weight is in each of a list of layers, ``layers.#.ffn.bias``; else its name."""
    return re.sub(r'(?<=\.)\d+(?=\.)', '#', name)


def build_runner(cfg: Config) -> Runner:
    """Builds a Runner whose datasets, image loading, widths and strides are checked.

    The config that the Runner keeps and writes stays as it was, for the inferencers of mmdet and
    mmpretrain look for ``LoadImageFromFile`` by name.

    Args:
        cfg: Config of a run; the hooks :class:`mcf_mm.FiniteLossHook` and
            :class:`mcf_mm.ClassCountHook` are added to it.

    Raises:
        ValueError: See :func:`mcf_mm.models.widths.check_widths` and
            :func:`mcf_mm.models.strides.check_strides`.
    """
    own_scope(cfg)
    for name in ('FiniteLossHook', 'ClassCountHook'):
        if name not in hook_types(cfg):
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=f'mcf_mm.{name}')]
    runner = CheckedRunner.from_cfg(cfg)
    check_widths(unwrapped(runner), cfg.model)
    check_strides(unwrapped(runner), cfg.model)
    # Copies of what the config says, which MMEngine builds when a loop starts.
    for loader in (runner._train_dataloader, runner._val_dataloader, runner._test_dataloader):
        check_input(loader)
    for evaluator in (runner._val_evaluator, runner._test_evaluator):
        check_input(evaluator)
    return runner


def check_input(part: Any) -> None:
    """Takes our classes for those of :data:`CHECKED` in a part of a config, in place.

    Args:
        part: A data loader, a dataset, an evaluator or a list of such; anything else is left alone.
    """
    if isinstance(part, dict):
        kind = part.get('type')
        scope, name = ('', '') if kind is None else split_type(kind)
        # 'mmcv.transforms.LoadImageFromFile' is that of mmcv.
        if name in CHECKED and scope.partition('.')[0] in CHECKED[name]:
            part['type'] = f'mcf_mm.{name}'
        for value in part.values():
            check_input(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            check_input(value)


def require_supported_parallelism(cfg: Config) -> None:
    """Refuses what in-run pruning cannot cut: a model whose parameters are sharded.

    Args:
        cfg: Config of a training run.

    Raises:
        ValueError: The config is one for MMEngine's strategies (DeepSpeed, FSDP, ColossalAI), or
            wraps the model in something else than DistributedDataParallel.
    """
    advice = (
        'MCFPruningHook trains in one process or with MMDistributedDataParallel, which have whole '
        'parameters to cut; or prune in one shot with tools/prune.py and train the slim network'
    )
    for key, default in (('runner_type', 'Runner'), ('strategy', None)):
        if cfg.get(key, default) != default:
            raise ValueError(f'{key} is {cfg[key]}: {advice}')
    kind = (cfg.get('model_wrapper_cfg') or {}).get('type')
    if kind is not None and cfg.get('launcher', 'none') != 'none':
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            wrapper = MODEL_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        if wrapper is None or not issubclass(wrapper, DistributedDataParallel):
            raise ValueError(f'model_wrapper_cfg.type is {kind}: {advice}')


def start_cpu_processes(cfg: Config) -> None:
    """Joins the processes of ``torchrun`` on a machine without accelerator.

    MMEngine's own start asks for CUDA, whatever the backend. Does nothing elsewhere.

    Args:
        cfg: Config of a training run, changed in place.
    """
    if cfg.get('launcher') != 'pytorch' or get_device() != 'cpu':
        return
    distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
