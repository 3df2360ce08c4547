"""mmpretrain's LoRA around a layer that reads a selection of its inputs."""

from mmpretrain.models.peft.lora import LoRALinear
from torch import Tensor, nn

from mcf_mm.pruning.layers import SlimLinear


class SlimLoRALinear(LoRALinear):
    """mmpretrain's ``LoRALinear`` around a :class:`mcf_mm.pruning.SlimLinear`.

    The low-rank branch reads the same C' of C inputs as the layer does.

    Shape:
        Input ``(..., C)``, output ``(..., out_features)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        selected = self.lora_dropout(x.index_select(-1, self.original_layer.inputs))
        return self.original_layer(x) + self.lora_up(self.lora_down(selected)) * self.scaling


def adopt_lora(model: nn.Module) -> None:
    """Give each ``LoRALinear`` around a slim layer a forward that selects inputs; in place.

    ``LoRAModel`` wraps the layers of a network that is built already, with a branch as wide as the
    weight; parameters and names stay as it made them.
    """
    for module in model.modules():
        if type(module) is LoRALinear and isinstance(module.original_layer, SlimLinear):
            module.__class__ = SlimLoRALinear


def has_lora(model: nn.Module) -> bool:
    """Whether layers of ``model`` are wrapped by LoRA."""
    return any(isinstance(module, LoRALinear) for module in model.modules())
