"""MCF inside one training run (section 4.2 of the paper)."""

from pathlib import Path

from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.optim import Optimizer

from mcf_mm.analysis.complexity import build_model, count_complexity, input_shape
from mcf_mm.analysis.report import write_report
from mcf_mm.engine.calibration_data import calibration_loader, image_names, tensor_forward
from mcf_mm.engine.networks import averages, cut_networks, unwrapped
from mcf_mm.engine.parallel import require_supported_parallelism
from mcf_mm.engine.teacher import Teacher, check_teacher
from mcf_mm.models.widths import check_widths
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
from mcf_mm.pruning.oneshot import apply_masks, check_arguments, require_dense_ffns
from mcf_mm.pruning.surgery import compact_rows
from mcf_mm.registry import HOOKS
from mcf_mm.weights.checkpoint import read_state_dict, save_state_dict
from mcf_mm.weights.slim_config import check_selection, write_slim

STATE = 'mcf_pruning'


@HOOKS.register_module()
class MCFPruningHook(Hook):
    """Prunes the FFNs of the model while it trains, and writes the small network at the end.

    With n FFNs and epochs counted from 0: in each of the epochs ``start_epoch`` ...
    ``start_epoch + n - 1`` one FFN is sparsified, last first, and its mask held from then on; at
    the start of epoch ``start_epoch + n`` CRS and X-Transformation make the model really small;
    the epochs that remain recover. ``slim.safetensors`` and ``slim.py`` in the work directory are
    the result; ``report/`` there has pictures of what was kept and why.

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
        multiple: Sizes become multiples of this (ours), see :func:`mcf_mm.pruning.kept_size`.
            Defaults to 1, the paper.
        last_step: Where the method ends, for ablations: see :func:`mcf_mm.pruning.prune`.
            Defaults to ``'x_transformation'``, all of it.
        teacher: Arguments of :class:`mcf_mm.engine.teacher.Teacher`: the dense network, as it was
            before pruning, teaches the small one (ours), ``dict(logits=1.0)``. Defaults to None,
            the paper.
        seed: Chooses the calibration images. Defaults to 0.

    Raises:
        ValueError: An argument is out of range; the run is one of FSDP or DeepSpeed; the model has
            no FFN or a pruned one, or parts that do not fit together; there are fewer epochs than
            FFNs + 1; a checkpoint to resume from is not of such a run.

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
        multiple: int = 1,
        last_step: str = 'x_transformation',
        teacher: dict | None = None,
        seed: int = 0,
    ):
        self.input_ratio = ratio if input_ratio is None else input_ratio
        self.hidden_ratio = ratio if hidden_ratio is None else hidden_ratio
        check_arguments(
            method, self.input_ratio, self.hidden_ratio, guide, last_step, compensation, multiple
        )
        if teacher is not None:
            check_teacher(**teacher)
        if start_epoch < 0:
            raise ValueError(f'start_epoch must not be negative, got {start_epoch}')
        self.start_epoch = start_epoch
        self.method = method
        self.num_images = num_images
        self.compensation = compensation
        self.guide = guide
        self.scale = scale
        self.shared_inputs = shared_inputs
        self.multiple = multiple
        self.last_step = last_step
        self.teacher = teacher
        self.seed = seed
        self.sparse: dict[str, SparseFFN] = {}
        # What surgery has done: at most one of the two.
        self.structure: Structure | None = None
        self.row_masks: dict[str, tuple[Tensor, Tensor]] | None = None
        self.origin: str | None = None

    @property
    def is_small(self) -> bool:
        """Whether surgery is done."""
        return self.structure is not None or self.row_masks is not None

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
        model = unwrapped(runner)
        check_widths(model, runner.cfg.model)
        self.names = [ffn.name for ffn in find_ffns(model)]
        if not self.is_small:
            ffns = require_dense_ffns(model)
            # Now, and not when the run is over.
            check_selection(model, runner.cfg, 'row' if self.last_step == 'crs' else 'layer')
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
        if self.teacher is not None:
            self._prepare_teacher(runner)
            if runner.epoch > self.start_epoch + len(self.names):
                self.teacher_model.attach(model)

    def before_train_epoch(self, runner: Runner) -> None:
        """Sparsifies one FFN, or makes the model small when all are sparse."""
        if self.is_small:
            return
        step = runner.epoch - self.start_epoch
        if 0 <= step < len(self.names):
            self._sparsify(runner, self.names[-1 - step])
            return
        if step == len(self.names):
            if self.last_step != 'fis':
                self._cut(runner)
            if self.teacher is not None:
                self.teacher_model.attach(unwrapped(runner))

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Holds the masks: what the optimizer moved away from zero goes back."""
        apply_masks(unwrapped(runner), self.sparse)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the state of the pruning, so that ``--resume`` goes on where it was."""
        checkpoint[STATE] = {
            'sparse': {name: vars(sparse) for name, sparse in self.sparse.items()},
            'structure': self.structure.to_json() if self.structure else None,
            'row_masks': self.row_masks,
            'origin': self.origin,
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """On ``--resume``, makes the model as small as the weights that are about to come."""
        if not runner._resume or STATE not in checkpoint:
            return
        model, state = unwrapped(runner), checkpoint[STATE]
        self.origin = state.get('origin')
        device = next(model.parameters()).device
        self.sparse = {
            name: SparseFFN(**{key: value.to(device) for key, value in parts.items()})
            for name, parts in state['sparse'].items()
        }
        if state['structure']:
            self.structure = Structure.from_json(state['structure'])
        self.row_masks = state.get('row_masks')
        if self.is_small:
            cut_networks(runner, self._cut_ffns)

    def after_train(self, runner: Runner) -> None:
        """Writes the slim checkpoint and its config."""
        if runner.rank != 0 or not (self.is_small or self.sparse):
            return
        facts = dict(
            origin=self.origin,
            method=self.method,
            input_ratio=self.input_ratio,
            hidden_ratio=self.hidden_ratio,
            compensation=self.compensation,
            last_step=self.last_step,
            epochs=runner.max_epochs,
        )
        # The average, where there is one, is what validation and MMEngine's checkpoints have.
        model = [unwrapped(runner), *averages(runner)][-1]
        path = write_slim(
            model, runner.cfg, runner.work_dir, facts, runner.train_dataloader.dataset
        )
        runner.logger.info(f'MCF: wrote {path} and {path.with_suffix(".py")}')

    def _sparsify(self, runner: Runner, name: str) -> None:
        """FIS on one FFN, guided through those behind it."""
        model = unwrapped(runner)
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
            multiple=self.multiple,
        )
        # Once is enough for the average: from here on it only takes in weights that are masked.
        for network in (model, *averages(runner)):
            apply_masks(network, self.sparse)
        thresholds = self.sparse[name].thresholds
        figures |= {'threshold_fc1': thresholds[0], 'threshold_fc2': thresholds[1]}
        _report(runner, f'MCF: sparsified {name}', figures)

    def _cut(self, runner: Runner) -> None:
        """X-Transformation, compensation and surgery."""
        model = unwrapped(runner)
        before = count_complexity(model, self.shape)
        sparse = {name: self.sparse[name] for name in self.names}
        if self.last_step == 'crs':
            self.row_masks = {name: ffn.masks for name, ffn in sparse.items()}
        else:
            self.structure = x_transformation(
                sparse, self.input_ratio, self.hidden_ratio, self.shared_inputs, self.multiple
            )
        if self.compensation != 'none':
            calibration = self._calibrate(runner, self.names, second_moments=True)
            for network in (model, *averages(runner)):
                compensate(network, self.structure, calibration, self.compensation)
        cut_networks(runner, self._cut_ffns)
        self.sparse = {}
        after = count_complexity(model, self.shape)
        for ffn in find_ffns(model):
            runner.logger.info(
                f'MCF: {ffn.name} keeps {ffn.sizes[0]} inputs and {ffn.sizes[1]} hidden units'
            )
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
        if self.structure is not None and runner.rank == 0:
            write_report(
                Path(runner.work_dir) / 'report',
                self.structure,
                {name: ffn.scores for name, ffn in sparse.items()},
                before,
                after,
                runner.visualizer,
                runner.epoch,
            )

    def _cut_ffns(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        if self.structure is not None:
            prune_ffns(model, self.structure, optimizer)
        else:
            compact_rows(model, self.row_masks, optimizer)

    def _prepare_teacher(self, runner: Runner) -> None:
        """Keeps the dense network in a file, for ``--resume`` starts from a pruned one."""
        path = Path(runner.work_dir) / 'teacher.safetensors'
        if runner.epoch == 0 and runner.rank == 0:
            save_state_dict(path, unwrapped(runner).state_dict(), {'origin': 'teacher'})
        dense = build_model(runner.cfg)
        barrier()
        dense.load_state_dict(read_state_dict(str(path)))
        dense.to(next(runner.model.parameters()).device)
        self.teacher_model = Teacher(dense, **self.teacher)

    def _calibrate(
        self, runner: Runner, names: list[str], second_moments: bool = False
    ) -> Calibration:
        model = unwrapped(runner)
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


def _report(runner: Runner, text: str, values: dict[str, float]) -> None:
    """Logs ``values`` and shows them in the visualizer's backends, by epoch."""
    figures = ', '.join(f'{key} {value:,.6g}' for key, value in values.items())
    runner.logger.info(f'{text}: {figures}')
    scalars = {f'mcf/{key}': value for key, value in values.items()}
    runner.visualizer.add_scalars(scalars, step=runner.epoch)
