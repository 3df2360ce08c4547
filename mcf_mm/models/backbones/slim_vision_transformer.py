"""mmpretrain's VisionTransformers with an own size for each unit."""

from mmpretrain.models import DistilledVisionTransformer, VisionTransformer
from torch import Tensor

from mcf_mm.models.backbones.windows import WindowedBlocks
from mcf_mm.models.slim import SlimUnits
from mcf_mm.registry import MODELS
from mcf_mm.weights.checkpoint import read_state_dict
from mcf_mm.weights.resize import fit_positions, note_grid, noted_grid


class GridPositions:
    """Mixin: position embeddings are resized from the grid that they were learnt for.

    mmpretrain takes every grid for a square, and as many positions for the same grid. Ours is noted
    in the state dict.
    """

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_grid(destination, self.patch_resolution, prefix.removesuffix('.'))

    def _prepare_pos_embed(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict, *args
    ) -> None:
        name = prefix + 'pos_embed'
        if name in state_dict:
            state_dict[name] = fit_positions(
                state_dict[name],
                tuple(self.patch_resolution),
                extra=self.num_extra_tokens,
                noted=self._noted_grid(local_metadata, state_dict[name]),
                name=name,
            )

    def _noted_grid(self, local_metadata: dict, embed: Tensor) -> tuple[int, int] | None:
        """The grid of the checkpoint; MMEngine drops the note where ``init_cfg`` has a prefix."""
        grid = local_metadata.get('grid')
        init_cfg = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        if grid is None and init_cfg.get('prefix') and init_cfg.get('type') == 'Pretrained':
            module = init_cfg['prefix'].removesuffix('.')
            state_dict = read_state_dict(init_cfg['checkpoint'])
            there = state_dict.get(f'{module}.pos_embed')
            if there is not None and there.shape == embed.shape:
                grid = noted_grid(state_dict, module)
        return grid


@MODELS.register_module()
class SlimVisionTransformer(GridPositions, SlimUnits, WindowedBlocks, VisionTransformer):
    """Vision Transformer with pruned FFNs and attentions.

    Arguments are those of :class:`mmpretrain.models.VisionTransformer`, of
    :class:`mcf_mm.models.slim.SlimUnits` and, for detectors on large images, ``window_size`` and
    ``global_blocks`` of :class:`mcf_mm.models.backbones.windows.WindowedBlocks`.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimVisionTransformer', arch='deit-small', sizes='auto',
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
        >>> backbone = dict(
        ...     type='mcf_mm.SlimVisionTransformer', arch='deit-small',
        ...     sizes=dict(inputs=230, hidden=921, heads=[6] * 6 + [4] * 6))
        >>> backbone = dict(  # as in ViTDet
        ...     type='mcf_mm.SlimVisionTransformer', arch='deit-small', out_type='featmap',
        ...     window_size=14, global_blocks=(2, 5, 8, 11))
    """


@MODELS.register_module()
class SlimDistilledVisionTransformer(GridPositions, SlimUnits, DistilledVisionTransformer):
    """The same for DeiT with a distillation token.

    Arguments are those of :class:`mmpretrain.models.DistilledVisionTransformer` and of
    :class:`mcf_mm.models.slim.SlimUnits`.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimDistilledVisionTransformer', arch='deit-small', sizes='auto',
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """
