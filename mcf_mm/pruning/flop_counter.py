"""torch's counter of operations, which in older versions passes attention on CPUs by."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """A counter that shows nothing and knows ``scaled_dot_product_attention`` on all devices.

    Before about torch 2.6 ``FlopCounterMode`` counts the fused kernel of CPUs as nothing: DeiT-T
    would have 1.075 GMACs in place of 1.254.
    """
    kernel = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', None)
    mapping = {} if kernel is None else {kernel: _attention_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention_flops(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """Operations of query times key and attention times value, from shapes ``(B, heads, N, d)``."""
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[-2] * (width + value[-1])
