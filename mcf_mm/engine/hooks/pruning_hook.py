"""Prunes a model in the middle of its training run."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcf_mm.engine.pruning_run import STATE, PruningRun
from mcf_mm.pruning.budget import Budget
from mcf_mm.pruning.prune import Ratios
from mcf_mm.pruning.structure import Sizes
from mcf_mm.registry import HOOKS


@HOOKS.register_module()
class PruningHook(Hook):
    """Cuts the model at the start of one epoch, and writes the small network at the end.

    The optimizer's state, the average of an EMAHook and the wrapper of distributed data parallel
    shrink along; the epochs that remain recover. ``slim.safetensors``, ``slim.py`` and the model
    card ``slim.md`` in the work directory are the result; ``report/index.html`` there shows what
    was kept and why, and how it trained.

    Args:
        criterion: Name, config or function, see :func:`mcf_mm.pruning.prune`. Defaults to
            ``'obs'`` with a budget and to ``'fisher'`` without.
        ratios: Share to drop, see :func:`mcf_mm.pruning.prune`. Defaults to 0.4 of the inputs and
            hidden units where there are neither ``sizes`` nor a ``budget``.
        sizes: How many are kept, instead of ratios: ``{unit: {kind: n}}`` or a JSON file of it.
        epoch: At the start of which epoch the model is cut, from 0. Defaults to 0.
        num_images: Training images to calibrate on. Defaults to 1024.
        compensation: See :func:`mcf_mm.pruning.compensate`. Defaults to that of the criterion.
        multiple: Sizes become multiples of this. Defaults to 1.
        teacher: Arguments of :class:`mcf_mm.TeacherHook`: the dense network, as it is before
            surgery, teaches the small one. Defaults to None.
        seed: Chooses the calibration images. Defaults to 0.
        heal: Arguments of :class:`mcf_mm.pruning.Healing`, such as ``dict(epochs=2)``: right after
            surgery the model, and with it the average of an EMAHook, is drawn to the dense network
            without labels. A run that is killed meanwhile resumes from its last checkpoint and
            heals again. Defaults to None.
        budget: What the network may cost, instead of ratios or sizes, such as ``'macs=60%'``, see
            :func:`mcf_mm.pruning.prune`. Defaults to None.
        kinds: What a budget may prune, see :func:`mcf_mm.pruning.prune`.
        latency: JSON file of measured times, as ``tools/prune.py --latency`` writes it, for a
            budget of ``'latency=70%'``. Defaults to None.

    Raises:
        ValueError: An argument is out of range; the run cannot be pruned
            (:func:`mcf_mm.engine.in_run.check_run`) or could not go on after surgery
            (:func:`mcf_mm.engine.in_run.try_cut`); a checkpoint to resume from is of another run.

    Example:
        >>> custom_hooks = [
        ...     dict(type='mcf_mm.PruningHook', budget='macs=60%', heal=dict(epochs=20))]
    """

    # Before CheckpointHook and EMAHook, which are to see what this hook has done.
    priority = 'HIGH'

    def __init__(
        self,
        criterion: Any = None,
        ratios: Ratios | None = None,
        sizes: Sizes | str | None = None,
        epoch: int = 0,
        num_images: int = 1024,
        compensation: str | None = None,
        multiple: int = 1,
        teacher: dict | None = None,
        seed: int = 0,
        heal: dict | None = None,
        budget: Budget | None = None,
        kinds: Sequence[str] | None = None,
        latency: str | None = None,
    ):
        self.pruning = PruningRun(
            type(self).__name__,
            criterion,
            ratios,
            sizes,
            epoch,
            num_images,
            compensation,
            multiple,
            teacher,
            seed,
            heal,
            budget,
            kinds,
            latency,
        )

    @property
    def is_small(self) -> bool:
        """Whether surgery is done."""
        return self.pruning.is_small

    def before_run(self, runner: Runner) -> None:
        """Look at the config."""
        self.pruning.look(runner)

    def before_train(self, runner: Runner) -> None:
        """Check and try everything before any time is spent."""
        self.pruning.start(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Cut the model when its time has come."""
        if not self.is_small and runner.epoch == self.pruning.cut_epoch:
            self.pruning.cut(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state of the pruning, so that ``--resume`` goes on where it was."""
        checkpoint[STATE] = self.pruning.state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """On ``--resume``, cut before the weights come."""
        if runner._resume:
            self.pruning.resume(runner, checkpoint)

    def after_train(self, runner: Runner) -> None:
        """Write the result."""
        self.pruning.finish(runner)
