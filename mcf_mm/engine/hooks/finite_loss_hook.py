"""Stops a run whose loss is no number any more."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcf_mm.engine.calibration_data import image_names
from mcf_mm.registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training at the first loss that is NaN or infinite, and names the images of the batch.

    mmdet's CheckInvalidLossHook looks at every 50th loss and names nothing. This one looks at
    every loss, before a checkpoint of that iteration can be written, and costs no waiting for
    the GPU: MMEngine has already copied the loss of each iteration for its log. Each rank looks
    at its own; a launcher ends the others. ``tools/train.py`` adds it to every run.

    Raises:
        FloatingPointError: The loss is NaN or infinite.
        ValueError: There is no batch to take a loss of: the run would train nothing and end well.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.FiniteLossHook')]
    """

    # After MMEngine's RuntimeInfoHook, which copies the losses; before all that may write files.
    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        """Looks whether an epoch has a batch."""
        loader = runner.train_dataloader
        if len(loader) == 0:
            raise ValueError(
                f'train_dataloader gives no batch: {len(loader.dataset)} images, '
                f'batch_size={loader.batch_size} and drop_last={loader.drop_last}'
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Looks at ``loss``, the sum that was optimized."""
        if not outputs or 'loss' not in outputs or torch.as_tensor(outputs['loss']).isfinite():
            return
        values = {name: torch.as_tensor(value).item() for name, value in outputs.items()}
        losses = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
        last = runner.message_hub.runtime_info.get('last_ckpt')
        raise FloatingPointError(
            f'epoch {runner.epoch + 1}, iteration {runner.iter + 1}: the loss is not finite '
            f'({losses}); images of the batch: {", ".join(image_names(data_batch))}. No checkpoint '
            f'is written any more; the last one is {last or "none"}. Look at these images and '
            'their annotations, or train with a lower learning rate'
        )
