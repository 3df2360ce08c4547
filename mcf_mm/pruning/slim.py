"""Linear layers of a pruned FFN: a selection of the inputs, any number of outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Matrix products are fast when rows of their result begin at a multiple of this many elements.
#: Measured on one x86-64 core with MKL, float32: 921 outputs take 1.8 times as long as 928; the
#: tensor cores of GPUs want multiples of 8 as well.
ALIGNMENT = 8


class AlignedLinear(nn.Linear):
    """``nn.Linear`` that is not slowed down by an odd number of outputs: ``fc1`` after pruning.

    The weight is padded with zero rows for the product and the surplus outputs are cut off again;
    parameters and state dict know nothing of it. In evaluation mode with gradients, where MACs
    are counted, it is a plain linear layer.

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``, then perhaps not contiguous.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> 'AlignedLinear':
        """Takes over the parameters of ``linear``, the same objects."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.out_features, layer.in_features = linear.weight.shape
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        surplus = -self.out_features % ALIGNMENT
        if surplus == 0 or (torch.is_grad_enabled() and not self.training):
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
    def from_linear(cls, linear: nn.Linear, inputs: Tensor) -> 'SlimLinear':
        """Takes over the parameters of ``linear`` (the same objects) and selects ``inputs``.

        Args:
            linear: Layer whose weight already has ``len(inputs)`` columns.
            inputs: Indices of the input channels to read, ``(C',)``, int64.
        """
        layer = super().from_linear(linear)
        layer.register_buffer('inputs', inputs.to(linear.weight.device, torch.int64))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            # On the CPU a matrix is gathered four times as fast as a batch of sequences.
            rows = x.flatten(0, -2).index_select(1, self.inputs)
            return super().forward(rows.unflatten(0, x.shape[:-1]))
        return super().forward(x.index_select(-1, self.inputs))


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
