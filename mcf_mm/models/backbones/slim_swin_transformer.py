"""mmpretrain's Swin Transformer with an own size for each feed-forward network."""

from mmpretrain.models import SwinTransformer
from torch import Tensor, nn

from mcf_mm.models.ffn_sizes import SlimFFNs
from mcf_mm.registry import MODELS


@MODELS.register_module()
class SlimSwinTransformer(SlimFFNs, SwinTransformer):
    """Swin Transformer whose FFNs read C' of C inputs and have H' hidden units.

    Arguments are those of :class:`mmpretrain.models.SwinTransformer` and of
    :class:`mcf_mm.models.ffn_sizes.SlimFFNs`; FFNs are counted through all stages. As backbone of
    a detector it needs ``out_indices=(0, 1, 2, 3)`` and ``pad_small_map=True``.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimSwinTransformer', arch='tiny', sizes='auto',
        ...     out_indices=(0, 1, 2, 3), pad_small_map=True,
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The norm after the last stage is the classifier's; one for each other output is a
        # detector's, and starts anew from a classifier's checkpoint.
        self.new_weights = tuple(
            f'norm{index}.{kind}'
            for index in self.out_indices
            if index < self.num_layers - 1
            for kind in ('weight', 'bias')
        )

    @property
    def out_channels(self) -> list[int]:
        """Width of each output."""
        return [self.num_features[index] for index in self.out_indices]

    def _before_load(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        # Made from the window size; checkpoints of other libraries have none.
        for name, buffer in self.named_buffers():
            if name.endswith('relative_position_index'):
                state_dict.setdefault(prefix + name, buffer)
        super()._before_load(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> nn.Module:
        """As in torch; mmpretrain's returns None."""
        super().train(mode)
        return self
