"""A linear layer that reads only some of its inputs: ``fc1`` after input pruning."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimLinear(nn.Linear):
    """``nn.Linear`` on a selection of its input channels.

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
    def from_linear(cls, linear: nn.Linear, inputs: Tensor) -> 'SlimLinear':
        """Takes over the parameters of ``linear`` (the same objects) and selects ``inputs``.

        Args:
            linear: Layer whose weight already has ``len(inputs)`` columns.
            inputs: Indices of the input channels to read, ``(C',)``, int64.
        """
        slim = cls.__new__(cls)
        nn.Module.__init__(slim)
        slim.weight, slim.bias = linear.weight, linear.bias
        slim.out_features, slim.in_features = linear.weight.shape
        slim.register_buffer('inputs', inputs.to(linear.weight.device, torch.int64))
        return slim.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.index_select(-1, self.inputs), self.weight, self.bias)
