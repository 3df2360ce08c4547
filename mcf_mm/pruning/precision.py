"""Where bfloat16 saves time, and where it costs a lot of it."""

import warnings

import torch


def fast_bf16(device: torch.device | str) -> bool:
    """Whether bfloat16 is worth it on a device: not on a CPU that is known to emulate it.

    A CPU without AVX-512 has no kernels for it in oneDNN: products of matrices there took 66 times
    as long as in float32 (AMD EPYC with AVX2).
    """
    if torch.device(device).type != 'cpu':
        return True
    # The same answer at each call, unlike a measurement: the precision of a run hangs on it.
    supported = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
    return supported is None or bool(supported())


def choose_bf16(asked: bool, device: torch.device | str, name: str) -> bool:
    """Whether to compute in bfloat16; a warning says so where it is asked for and would be slow.

    Args:
        asked: Whether it is asked for.
        device: Where.
        name: What asks for it, such as ``'heal: bf16=True'``.
    """
    if not asked or fast_bf16(device):
        return asked
    warnings.warn(
        f'{name}: this processor has no bfloat16 and would emulate it, many times slower than '
        'float32: float32 is taken',
        stacklevel=3,
    )
    return False
