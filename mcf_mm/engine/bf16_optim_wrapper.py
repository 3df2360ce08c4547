"""Training steps in bfloat16 wherever it is fast; MMEngine's ``AmpOptimWrapper`` refuses CPUs."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn

from mcf_mm.pruning.precision import fast_bf16
from mcf_mm.registry import OPTIM_WRAPPERS

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # torch before 2.3
    SDPBackend = sdpa_kernel = None

#: Names in ``SDPBackend``.
KERNELS = {'math': 'MATH', 'flash': 'FLASH_ATTENTION'}


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` with forward passes under bfloat16 autocast.

    Weights, gradients and the optimizer stay in single precision. There is no loss scale, for
    bfloat16 has the range of single precision. A CPU that would emulate bfloat16
    (:func:`mcf_mm.pruning.precision.fast_bf16`) trains in float32, and a line of the log says so.

    Args:
        attention: Kernel of ``scaled_dot_product_attention``, ``'math'`` or ``'flash'``. On CPUs
            the backward pass of ``'flash'`` is slow for fewer than about 200 tokens. Defaults to
            None: torch chooses.
        **settings: As for ``OptimWrapper``: ``optimizer``, ``clip_grad``, ``accumulative_counts``.

    Raises:
        ValueError: ``attention`` is none of these, or torch is older than 2.3, which cannot choose.

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
        if attention is not None and sdpa_kernel is None:
            raise ValueError(
                f'Bf16OptimWrapper: attention={attention!r} needs torch 2.3 or newer, this is '
                f'{torch.__version__}: leave it out'
            )
        self.attention = attention
        self._told = False

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        fast = fast_bf16(device)
        if not fast and not self._told:
            self._told = True
            print_log(
                'Bf16OptimWrapper: this processor has no bfloat16 and would emulate it, many times '
                'slower than float32: the steps are in float32',
                logger='current',
                level=logging.WARNING,
            )
        with super().optim_context(model), ExitStack() as stack:
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=fast))
            if self.attention is not None:
                kernel = getattr(SDPBackend, KERNELS[self.attention])
                stack.enter_context(sdpa_kernel(kernel))
            yield
