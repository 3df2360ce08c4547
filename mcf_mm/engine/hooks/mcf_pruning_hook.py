"""MCF inside one training run (section 4.2 of the paper)."""

import gc

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.utils import track_iter_progress
from torch import nn

from mcf_mm.analysis.complexity import count_complexity, input_shape
from mcf_mm.engine.calibration_data import calibration_loader, image_names, tensor_forward
from mcf_mm.engine.parallel import require_supported_parallelism
from mcf_mm.engine.slim_export import slim_type, write_slim
from mcf_mm.pruning import (
    Calibration,
    SparseFFN,
    Structure,
    band_limit,
    calibrate,
    compensate,
    find_ffns,
    prune_ffns,
    sparsify,
    x_transformation,
)
from mcf_mm.pruning.compensation import check_compensation
from mcf_mm.pruning.oneshot import check_arguments, require_dense_ffns
from mcf_mm.registry import HOOKS

STATE = 'mcf_pruning'


@HOOKS.register_module()
class MCFPruningHook(Hook):
    """Prunes the FFNs of the model while it trains, and writes the small network at the end.

    With n FFNs and epochs counted from 0: in each of the epochs ``start_epoch`` ...
    ``start_epoch + n - 1`` one FFN is sparsified, last first, and its mask held from then on; at
    the start of epoch ``start_epoch + n`` CRS and X-Transformation make the model really small;
    the epochs that remain recover. ``slim.safetensors`` and ``slim.py`` in the work directory are
    the result.

    In distributed data parallel the processes share the calibration images. An EMAHook's average
    is masked, compensated (with the statistics of the model) and cut as the model is; since it is
    what is validated, it is also what ``slim.safetensors`` gets.

    Args:
        ratio: Share of inputs and of hidden units to drop, p in the paper, in [0, 1). Defaults to
            0.4.
        input_ratio: For the inputs alone. Defaults to ``ratio``.
        hidden_ratio: For the hidden units alone. Defaults to ``ratio``.
        start_epoch: First epoch that sparsifies. Defaults to 0.
        method: ``'mcf'`` or a baseline, see :func:`mcf_mm.pruning.sparsify`. Defaults to
            ``'mcf'``.
        num_images: Training images for each count, S in the paper. Defaults to 1024.
        compensation: ``'none'`` (the paper), ``'mean'`` or ``'least_squares'`` at surgery.
            Defaults to ``'none'``.
        guide: Fraction of important elements, see :func:`mcf_mm.pruning.guided_rows`. Defaults
            to 0.5 (ours).
        scale: Width of the band of FIS. Defaults to 1 (ours).
        shared_inputs: See :func:`mcf_mm.pruning.x_transformation`. Defaults to ``'layer'``.
        seed: Chooses the calibration images. Defaults to 0.

    Raises:
        ValueError: An argument is out of range; the run is one of FSDP or DeepSpeed; the model has
            no FFN or a pruned one; there are fewer epochs than FFNs + 1; a checkpoint to resume
            from is not of such a run.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4)]
    """

    # Before CheckpointHook and EMAHook, which are to see what this hook has done.
    priority = 'HIGH'

    def __init__(
        self,
        ratio: float = 0.4,
        input_ratio: float | None = None,
        hidden_ratio: float | None = None,
        start_epoch: int = 0,
        method: str = 'mcf',
        num_images: int = 1024,
        compensation: str = 'none',
        guide: float = 0.5,
        scale: float = 1.0,
        shared_inputs: str = 'layer',
        seed: int = 0,
    ):
        self.input_ratio = ratio if input_ratio is None else input_ratio
        self.hidden_ratio = ratio if hidden_ratio is None else hidden_ratio
        check_arguments(method, self.input_ratio, self.hidden_ratio, guide)
        check_compensation(compensation)
        if start_epoch < 0:
            raise ValueError(f'start_epoch must not be negative, got {start_epoch}')
        self.start_epoch = start_epoch
        self.method = method
        self.num_images = num_images
        self.compensation = compensation
        self.guide = guide
        self.scale = scale
        self.shared_inputs = shared_inputs
        self.seed = seed
        self.sparse: dict[str, SparseFFN] = {}
        self.structure: Structure | None = None
        self.origin: str | None = None

    def before_run(self, runner: Runner) -> None:
        """Refuses to shard, and remembers where the weights come from."""
        require_supported_parallelism(runner.cfg)
        self.origin = runner.cfg.get('load_from')

    def before_train(self, runner: Runner) -> None:
        """Refuses what could not end well, before any time is spent."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                'MCFPruningHook counts in epochs: set train_cfg.by_epoch=True, got '
                f'{type(runner.train_loop).__name__}'
            )
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError('MCFPruningHook works with one optimizer, got several')
        model = _unwrapped(runner)
        if self.structure is None:
            ffns = require_dense_ffns(model)
            self.names = [ffn.name for ffn in ffns]
            slim_type(runner.cfg)  # raises now what would else end the run at its last step
            needed = self.start_epoch + len(ffns) + 1
            if runner.max_epochs < needed:
                raise ValueError(
                    f'train_cfg.max_epochs is {runner.max_epochs}: with {len(ffns)} FFNs and '
                    f'start_epoch={self.start_epoch} it must be at least {needed}, one epoch for '
                    'each FFN and one to recover'
                )
            started = min(max(runner.epoch - self.start_epoch, 0), len(ffns))
            if set(self.sparse) != set(self.names[len(ffns) - started :]):
                raise ValueError(
                    f'epoch {runner.epoch} follows {started} sparsified FFNs, the checkpoint it '
                    f'resumes from has {len(self.sparse)}: resume a run of this hook with the same '
                    'start_epoch, or load the checkpoint with load_from and resume=False'
                )
            self.loader = calibration_loader(runner.cfg, self.num_images, self.seed)
            self.shape = input_shape(runner.cfg)

    def before_train_epoch(self, runner: Runner) -> None:
        """Sparsifies one FFN, or makes the model small when all are sparse."""
        if self.structure is not None:
            return
        step = runner.epoch - self.start_epoch
        if 0 <= step < len(self.names):
            self._sparsify(runner, self.names[-1 - step])
        elif step == len(self.names):
            self._cut(runner)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Holds the masks: what the optimizer moved away from zero goes back."""
        _apply_masks(_unwrapped(runner), self.sparse)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the state of the pruning, so that ``--resume`` goes on where it was."""
        checkpoint[STATE] = {
            'sparse': {name: vars(sparse) for name, sparse in self.sparse.items()},
            'structure': self.structure.to_json() if self.structure else None,
            'origin': self.origin,
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """On ``--resume``, makes the model as small as the weights that are about to come."""
        if not runner._resume or STATE not in checkpoint:
            return
        model, state = _unwrapped(runner), checkpoint[STATE]
        self.origin = state.get('origin')
        device = next(model.parameters()).device
        self.sparse = {
            name: SparseFFN(**{key: value.to(device) for key, value in parts.items()})
            for name, parts in state['sparse'].items()
        }
        if state['structure']:
            self.structure = Structure.from_json(state['structure'])
            self._shrink(runner)

    def after_train(self, runner: Runner) -> None:
        """Writes the slim checkpoint and its config."""
        if self.structure is None or runner.rank != 0:
            return
        facts = dict(
            origin=self.origin,
            method=self.method,
            input_ratio=self.input_ratio,
            hidden_ratio=self.hidden_ratio,
            compensation=self.compensation,
            epochs=runner.max_epochs,
        )
        # The average, where there is one, is what validation and MMEngine's checkpoints have.
        model = [_unwrapped(runner), *_averages(runner)][-1]
        path = write_slim(model, runner.cfg, self.structure, runner.work_dir, facts)
        runner.logger.info(f'MCF: wrote {path} and {path.with_suffix(".py")}')

    def _sparsify(self, runner: Runner, name: str) -> None:
        """FIS on one FFN, guided through those behind it."""
        model = _unwrapped(runner)
        ffn = next(ffn for ffn in find_ffns(model) if ffn.name == name)
        figures = {
            f'band_{layer}': band_limit(getattr(ffn, layer).weight, self.scale)
            for layer in ('fc1', 'fc2')
        }
        calibration = self._calibrate(runner, self.names[self.names.index(name) :])
        self.sparse |= sparsify(
            model,
            calibration,
            self.input_ratio,
            self.hidden_ratio,
            self.method,
            self.guide,
            self.scale,
            self.seed,
            only=name,
        )
        # Once is enough for the average: from here on it only takes in weights that are masked.
        for network in (model, *_averages(runner)):
            _apply_masks(network, self.sparse)
        thresholds = self.sparse[name].thresholds
        figures |= {'threshold_fc1': thresholds[0], 'threshold_fc2': thresholds[1]}
        _report(runner, f'MCF: sparsified {name}', figures)

    def _cut(self, runner: Runner) -> None:
        """X-Transformation, compensation and surgery."""
        model = _unwrapped(runner)
        before = count_complexity(model, self.shape)
        sparse = {name: self.sparse[name] for name in self.names}
        self.structure = x_transformation(
            sparse, self.input_ratio, self.hidden_ratio, self.shared_inputs
        )
        if self.compensation != 'none':
            calibration = self._calibrate(runner, self.names, second_moments=True)
            for network in (model, *_averages(runner)):
                compensate(network, self.structure, calibration, self.compensation)
        self._shrink(runner)
        self.sparse = {}
        after = count_complexity(model, self.shape)
        for name, sizes in self.structure.sizes.items():
            runner.logger.info(f'MCF: {name} keeps {sizes[0]} inputs and {sizes[1]} hidden units')
        _report(
            runner,
            'MCF: the model is small now',
            {
                'params_before': before.params,
                'params_after': after.params,
                'macs_before': before.macs,
                'macs_after': after.macs,
            },
        )

    def _shrink(self, runner: Runner) -> None:
        """Surgery on the model, its averages and the optimizer's state."""
        model, wrapped = _unwrapped(runner), is_model_wrapper(runner.model)
        if wrapped:
            # The reducer of DistributedDataParallel remembers the old sizes, and keeps alive the
            # autograd nodes that do: it has to be gone before the parameters shrink.
            runner.model = model
            gc.collect()
        prune_ffns(model, self.structure, runner.optim_wrapper.optimizer)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                average = hook.ema_model
                prune_ffns(average.module, self.structure)
                if average.update_buffers:
                    # It updates through this dictionary of tensors, which are of the old sizes.
                    average.avg_parameters = average.module.state_dict()
        if wrapped:
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    def _calibrate(
        self, runner: Runner, names: list[str], second_moments: bool = False
    ) -> Calibration:
        model = _unwrapped(runner)
        batches = self.loader
        if runner.rank == 0:
            batches = track_iter_progress((iter(self.loader), len(self.loader)))
        return calibrate(
            model,
            batches,
            tensor_forward(model),
            [ffn for ffn in require_dense_ffns(model) if ffn.name in names],
            second_moments,
            image_names,
            shared=runner.distributed,
        )


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _averages(runner: Runner) -> list[nn.Module]:
    """The networks that EMAHooks keep."""
    return [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]


def _apply_masks(model: nn.Module, sparse: dict[str, SparseFFN]) -> None:
    for ffn in find_ffns(model) if sparse else ():
        if ffn.name in sparse:
            ffn.fc1.weight.data.mul_(sparse[ffn.name].mask1)
            ffn.fc2.weight.data.mul_(sparse[ffn.name].mask2)


def _report(runner: Runner, text: str, values: dict[str, float]) -> None:
    """Logs ``values`` and shows them in the visualizer's backends, by epoch."""
    figures = ', '.join(f'{key} {value:,.6g}' for key, value in values.items())
    runner.logger.info(f'{text}: {figures}')
    scalars = {f'mcf/{key}': value for key, value in values.items()}
    runner.visualizer.add_scalars(scalars, step=runner.epoch)
