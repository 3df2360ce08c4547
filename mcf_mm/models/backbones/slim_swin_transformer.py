"""mmpretrain's Swin Transformer with an own size for each unit."""

from mmpretrain.models import SwinTransformer
from torch import Tensor

from mcf_mm.models.slim import SlimUnits
from mcf_mm.pruning.attention import SlimWindowAttention
from mcf_mm.registry import MODELS
from mcf_mm.weights.resize import fit_bias_tables
from mcf_mm.weights.swin import modern_swin_names


@MODELS.register_module()
class SlimSwinTransformer(SlimUnits, SwinTransformer):
    """Swin Transformer with pruned FFNs and attentions.

    Arguments are those of :class:`mmpretrain.models.SwinTransformer` and of
    :class:`mcf_mm.models.slim.SlimUnits`; units are counted through all stages. As backbone of a
    detector it needs ``out_indices=(0, 1, 2, 3)`` and ``pad_small_map=True``. Attention is torch's
    ``scaled_dot_product_attention``, also where it is dense. Weights of another window or, with
    ``use_abs_pos_embed``, of another image size are resized bicubically when they are loaded.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimSwinTransformer', arch='tiny', sizes='auto',
        ...     out_indices=(0, 1, 2, 3), pad_small_map=True,
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for stage in self.stages:
            for block in stage.blocks:
                SlimWindowAttention.adopt(block.attn.w_msa)
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
        modern_swin_names(state_dict, prefix, self.num_layers)
        # Made from the window size; checkpoints of other libraries have none.
        for name, buffer in self.named_buffers():
            if name.endswith('relative_position_index'):
                state_dict.setdefault(prefix + name, buffer)
        super()._before_load(state_dict, prefix, *args)

    def _prepare_relative_position_bias_table(
        self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs
    ) -> None:
        """Resize tables of another window; mmpretrain's needs a function that scipy dropped."""
        fit_bias_tables(state_dict, dict(self.named_parameters()), prefix)
