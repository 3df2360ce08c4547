"""MCF inside one training run (section 4.2 of the paper)."""

from mmengine.runner import Runner

from mcf_mm.engine.hooks.pruning_hook import PruningHook
from mcf_mm.engine.mcf_run import MCFRun
from mcf_mm.pruning.criteria.regular import hold
from mcf_mm.pruning.structure import check_ratio
from mcf_mm.registry import HOOKS


@HOOKS.register_module()
class MCFPruningHook(PruningHook):
    """Prunes the FFNs of the model while it trains, as the paper does.

    With n FFNs and epochs counted from 0: in each of the epochs ``start_epoch`` ...
    ``start_epoch + n - 1`` one FFN is sparsified, last first, and its mask held from then on; at
    the start of epoch ``start_epoch + n`` CRS and X-Transformation make the model really small;
    the epochs that remain recover. What is written is that of :class:`PruningHook`.

    In distributed data parallel the processes share the calibration images. An EMAHook's average
    is masked, compensated (with the statistics of the model) and cut as the model is; since it is
    what is validated, it is also what ``slim.safetensors`` gets.

    Args:
        ratio: Share of inputs and of hidden units to drop, p in the paper, in [0, 1). Defaults to
            0.4.
        input_ratio: For the inputs alone. Defaults to ``ratio``.
        hidden_ratio: For the hidden units alone. Defaults to ``ratio``.
        start_epoch: First epoch that sparsifies. Defaults to 0.
        method: ``'mcf'`` or a baseline, see :class:`mcf_mm.pruning.MCF`. Defaults to ``'mcf'``.
        num_images: Training images for each count, S in the paper. Defaults to 1024.
        compensation: ``'none'`` (the paper), ``'mean'`` or ``'least_squares'`` at surgery.
            Defaults to ``'none'``.
        guide: Fraction of important elements, see :class:`mcf_mm.pruning.MCF`. Defaults to 0.5
            (ours).
        scale: Width of the band of FIS. Defaults to 1 (ours).
        shared_inputs: See :class:`mcf_mm.pruning.MCF`. Defaults to ``'layer'``.
        multiple: Sizes become multiples of this (ours), see :func:`mcf_mm.pruning.kept_size`.
            Defaults to 1, the paper.
        last_step: ``'x_transformation'`` is the whole method; ``'fis'`` and ``'crs'``, for
            ablations, hold the masks to the end and write ``masked.safetensors``, of full size.
            Defaults to ``'x_transformation'``.
        teacher: As for :class:`PruningHook`; the network at the start of ``start_epoch`` teaches.
        seed: Chooses the calibration images. Defaults to 0.
        heal: As for :class:`PruningHook`, towards the network at the start of ``start_epoch``.

    Raises:
        ValueError: As for :class:`PruningHook`; there are fewer epochs than FFNs + 1.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4)]
    """

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
        heal: dict | None = None,
    ):
        check_ratio('ratio', ratio)
        self.pruning = MCFRun(
            type(self).__name__,
            dict(
                type='mcf',
                method=method,
                guide=guide,
                scale=scale,
                shared_inputs=shared_inputs,
                seed=seed,
            ),
            ratio if input_ratio is None else input_ratio,
            ratio if hidden_ratio is None else hidden_ratio,
            start_epoch,
            last_step,
            compensation,
            num_images=num_images,
            multiple=multiple,
            teacher=teacher,
            seed=seed,
            heal=heal,
        )

    def before_train_epoch(self, runner: Runner) -> None:
        """Sparsify one FFN, or make the model small when all are sparse."""
        if not self.is_small:
            self.pruning.begin_epoch(runner)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Hold the masks: what the optimizer moved away from zero goes back."""
        hold(self.pruning.held)
