"""Linear layers of pruned networks: a selection of the inputs, any number of outputs."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Matrix products are fast when rows of their result begin at a multiple of this many elements.
#: Measured on one x86-64 core with MKL, float32: 921 outputs take 1.8 times as long as 928; the
#: tensor cores of GPUs want multiples of 8 as well.
ALIGNMENT = 8

Layer = TypeVar('Layer', bound='AlignedLinear')


class AlignedLinear(nn.Linear):
    """``nn.Linear`` that is not slowed down by an odd number of outputs: ``fc1`` after pruning.

    The weight is padded with zero rows for the product and the surplus outputs are cut off again;
    parameters and state dict know nothing of it. Where a program or its operations are recorded
    (tracing, export, compilation, torch's FlopCounterMode) it is a plain linear layer.

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``, then perhaps not contiguous.
    """

    @classmethod
    def from_linear(cls: type[Layer], linear: nn.Linear) -> Layer:
        """Take over the parameters of ``linear``, the same objects, and its hooks."""
        layer = cls.__new__(cls)
        layer.__dict__.update(linear.__dict__)
        # Of its own, so that what is added here does not appear there.
        layer._parameters, layer._buffers = dict(linear._parameters), {}
        layer.out_features, layer.in_features = linear.weight.shape
        return layer

    def forward(self, x: Tensor) -> Tensor:
        surplus = -self.out_features % ALIGNMENT
        if surplus == 0 or is_recorded(x):
            return F.linear(x, self.weight, self.bias)
        weight = F.pad(self.weight, (0, 0, 0, surplus))
        bias = None if self.bias is None else F.pad(self.bias, (0, surplus))
        return F.linear(x, weight, bias)[..., : self.out_features]


class SlimLinear(AlignedLinear):
    """``nn.Linear`` on a selection of its input channels: ``fc1`` after input pruning.

    The final structure of MCF (section 3.4, figure 3): gather C' of C inputs, then a dense
    layer. The selection is a buffer, so it travels in the state dict.

    Args:
        in_features: Number of inputs that are kept, C'.
        out_features: Number of outputs.
        bias: Whether there is a bias. Defaults to True.

    Shape:
        Input ``(..., C)`` with any C larger than every index, output ``(..., out_features)``.
    """

    inputs: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **kwargs):
        super().__init__(in_features, out_features, bias, **kwargs)
        self.register_buffer('inputs', torch.arange(in_features, device=self.weight.device))

    @classmethod
    def from_linear(cls: type[Layer], linear: nn.Linear, inputs: Tensor | None = None) -> Layer:
        """Take over the parameters of ``linear`` (the same objects) and select ``inputs``.

        Args:
            linear: Layer whose weight already has ``len(inputs)`` columns.
            inputs: Indices of the input channels to read, ``(C',)``, int64. Defaults to the first.
        """
        if inputs is None:
            inputs = torch.arange(linear.weight.shape[1])
        layer = super().from_linear(linear)
        layer.register_buffer('inputs', inputs.to(linear.weight.device, torch.int64))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            # On the CPU a matrix is gathered four times as fast as a batch of sequences.
            rows = x.flatten(0, -2).index_select(1, self.inputs)
            return super().forward(rows.unflatten(0, x.shape[:-1]))
        return super().forward(x.index_select(-1, self.inputs))


_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # torch 2.1 has none


def is_recorded(x: Tensor) -> bool:
    """Whether operations are being recorded or counted, and not only computed."""
    return (
        x.is_meta
        or torch.jit.is_tracing()
        or _is_compiling()
        # A mode such as FlopCounterMode sees each operation.
        or torch._C._len_torch_dispatch_stack() > 0
    )
