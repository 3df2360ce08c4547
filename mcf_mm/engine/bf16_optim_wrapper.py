"""Training steps in bfloat16 on any device; MMEngine's ``AmpOptimWrapper`` refuses CPUs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mcf_mm.registry import OPTIM_WRAPPERS

KERNELS = {'math': SDPBackend.MATH, 'flash': SDPBackend.FLASH_ATTENTION}


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` with forward passes under bfloat16 autocast.

    Weights, gradients and the optimizer stay in single precision. There is no loss scale, for
    bfloat16 has the range of single precision.

    Args:
        attention: Kernel of ``scaled_dot_product_attention``, ``'math'`` or ``'flash'``. On CPUs
            the backward pass of ``'flash'`` is slow for fewer than about 200 tokens. Defaults to
            None: torch chooses.
        **settings: As for ``OptimWrapper``: ``optimizer``, ``clip_grad``, ``accumulative_counts``.

    Raises:
        ValueError: ``attention`` is none of these.

    Example:
        >>> optim_wrapper = dict(
        ...     type='mcf_mm.Bf16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
    """

    def __init__(self, attention: str | None = None, **settings):
        super().__init__(**settings)
        if attention not in (None, *KERNELS):
            raise ValueError(
                f'Bf16OptimWrapper: attention must be None or one of {", ".join(KERNELS)}, got '
                f'{attention!r}'
            )
        self.attention = attention

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), ExitStack() as stack:
            stack.enter_context(torch.autocast(device, torch.bfloat16))
            if self.attention is not None:
                stack.enter_context(sdpa_kernel(KERNELS[self.attention]))
            yield
