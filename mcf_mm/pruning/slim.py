"""Linear layers that read only some of their inputs."""

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


class RowSparseLinear(nn.Linear):
    """``nn.Linear`` whose rows each have a selection of inputs of their own.

    What CRS leaves before X-Transformation (section 3.3, row 3 of table 3): equally many weights
    in every row. It has the parameters of that network, not its speed: a dense product needs no
    more time than a gather for each row.

    Args:
        in_features: Number of inputs that each row keeps, K.
        out_features: Number of rows, O.
        channels: Number of channels C of the input.
        bias: Whether there is a bias. Defaults to True.

    Shape:
        Input ``(..., C)``, output ``(..., O)``; ``weight`` and the buffer ``inputs`` ``(O, K)``.
    """

    inputs: Tensor

    def __init__(
        self, in_features: int, out_features: int, channels: int, bias: bool = True, **kwargs
    ):
        super().__init__(in_features, out_features, bias, **kwargs)
        self.channels = channels
        index = torch.arange(in_features, device=self.weight.device)
        self.register_buffer('inputs', index.repeat(out_features, 1))

    @classmethod
    def from_linear(cls, linear: nn.Linear, inputs: Tensor, channels: int) -> 'RowSparseLinear':
        """Takes over the parameters of ``linear`` (the same objects).

        Args:
            linear: Layer whose weight is compact already, ``(O, K)``.
            inputs: Indices of the channels that each row reads, ``(O, K)``, int64.
            channels: Number of channels C of the input.
        """
        sparse = cls.__new__(cls)
        nn.Module.__init__(sparse)
        sparse.weight, sparse.bias, sparse.channels = linear.weight, linear.bias, channels
        sparse.out_features, sparse.in_features = linear.weight.shape
        sparse.register_buffer('inputs', inputs.to(linear.weight.device, torch.int64))
        return sparse.train(linear.training)

    @property
    def density(self) -> float:
        """Share of the products that are not with zero, K / C."""
        return self.in_features / self.channels

    def dense_weight(self) -> Tensor:
        """The weight with its zeros, ``(O, C)``."""
        zeros = self.weight.new_zeros(self.out_features, self.channels)
        return zeros.scatter(1, self.inputs, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense_weight(), self.bias)
