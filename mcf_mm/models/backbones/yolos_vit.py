"""The encoder of YOLOS: a (slim) vision transformer with detection tokens."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from mcf_mm.models.backbones.slim_vision_transformer import SlimVisionTransformer
from mcf_mm.pruning.attention import SlimMultiheadAttention
from mcf_mm.registry import MODELS, is_pretrained
from mcf_mm.weights.resize import find_grid, resize_positions

#: Image sizes whose position embeddings are kept in evaluation. One takes 79 MB for YOLOS-S at
#: 800 x 1333, and a handful of sizes covers most of COCO.
CACHED_GRIDS = 16

_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # torch 2.1 has none


class MaskedEncoderLayer(TransformerEncoderLayer):
    """mmpretrain's encoder layer, with a mask for tokens that are only padding."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention, then the feed-forward network.

        Args:
            x: Tokens, ``(B, N, C)``.
            mask: True for the tokens that may be attended to, broadcast to ``(B, heads, N, N)``.
                Defaults to None, all of them.

        Returns:
            Tokens, ``(B, N, C)``.
        """
        x = x + self.attn(self.ln1(x), mask)
        return self.ffn(self.ln2(x), identity=x)


@MODELS.register_module()
class YOLOSVisionTransformer(SlimVisionTransformer):
    """Encoder of YOLOS, dense or slim.

    The sequence is [CLS, patches, DET]. Its position embedding is learnt for one image size and
    resized bicubically to each other size. In type I, every block but the last is followed by
    such an embedding of its own; type II has the first one only. See section 2 and appendix of
    `You Only Look at One Sequence <https://arxiv.org/abs/2106.00666>`_.

    A checkpoint of a classification backbone, dense or slim, can be loaded: its position
    embedding is resized, and the detection tokens and everything else it lacks start anew.

    Images of unlike size in a batch do not see each other's padding: the patches outside an image
    are dropped, each image has the position embeddings of its own grid, and what remains to be
    padded is masked in attention. (Ours; the public code treats padding as image.)

    Args:
        arch: Architecture, as for mmpretrain's VisionTransformer. Defaults to 'deit-small'.
        img_size: Height and width that the position embeddings are learnt for, in pixels.
            Defaults to (512, 864), as for YOLOS-S; YOLOS-Ti has (800, 1333).
        num_det_tokens: Number of detection tokens, the most objects in an image. Defaults to 100.
        with_mid_pos_embed: Whether there are position embeddings between the blocks (type I).
            Defaults to False (type II).
        mask_padding: Whether padding is kept out. Defaults to True. False is the public code:
            padding is image and positions are those of the padded size. Boxes are relative to
            each image without its padding all the same, as in its training and evaluation.
        with_cp: Whether training keeps the outputs of the blocks alone and computes the rest again
            in the backward pass (activation checkpointing): a fraction of the memory for a third
            more time. Defaults to False.
        **kwargs: As for :class:`SlimVisionTransformer`.

    Attributes:
        counted_tokens: Which tokens of the last batch count, bool ``(B, N)``: patches that are no
            padding and detection tokens, not the class token. Calibration asks for it. None before
            the first forward pass and in copies; not set where a program is traced or compiled.

    Raises:
        ValueError: A checkpoint of a classifier has no square grid of positions; a checkpoint of
            a detector was made for other positions or is of the other type.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.YOLOSVisionTransformer', arch='deit-small', sizes='auto',
        ...     img_size=(512, 864), with_mid_pos_embed=True,
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """

    new_weights = ('det_token', 'mid_pos_embed')
    sets_sizes_itself = True  # which tokens there are is not known before

    def __init__(
        self,
        arch: str | dict = 'deit-small',
        img_size: int | tuple[int, int] = (512, 864),
        num_det_tokens: int = 100,
        with_mid_pos_embed: bool = False,
        mask_padding: bool = True,
        with_cp: bool = False,
        **kwargs,
    ):
        # A convolution without padding leaves out partial patches, as the public code does;
        # mmpretrain's default would complete them with zeros.
        super().__init__(
            arch=arch, img_size=img_size, out_type='raw', patch_cfg=dict(padding=0), **kwargs
        )
        self.num_det_tokens = num_det_tokens
        self.mask_padding = mask_padding
        self.with_cp = with_cp
        height, width = self.patch_resolution
        num_tokens = 1 + height * width + num_det_tokens
        self.det_token = nn.Parameter(torch.zeros(1, num_det_tokens, self.embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, self.embed_dims))
        self.mid_pos_embed = None
        if with_mid_pos_embed:
            self.mid_pos_embed = nn.Parameter(
                torch.zeros(self.num_layers - 1, 1, num_tokens, self.embed_dims)
            )
        for embed in (self.det_token, self.pos_embed, self.mid_pos_embed):
            if embed is not None:
                _init_embed(embed)
        for layer in self.layers:
            # VisionTransformer builds one class of layer; these add an argument, no parameter.
            layer.__class__ = MaskedEncoderLayer
            SlimMultiheadAttention.adopt(layer.attn)
        self._cached_positions: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self.counted_tokens: Tensor | None = None
        self._set_sizes()

    def init_weights(self) -> None:
        """As mmpretrain's, which draws the position embedding anew without a checkpoint."""
        super().init_weights()
        if not is_pretrained(self.init_cfg):
            _init_embed(self.pos_embed)

    def forward(
        self, x: Tensor, img_shapes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor]:
        """Encodes images.

        Args:
            x: Images, ``(B, 3, H, W)``, padded at the right and the bottom.
            img_shapes: Height and width of each image without its padding, in pixels. Defaults
                to None: no image has padding.

        Returns:
            The detection tokens after the final norm, ``(B, num_det_tokens, C)``, in a tuple.

        Raises:
            ValueError: An image is smaller than a patch.
        """
        num_images = x.shape[0]  # not len(x), which an exported graph would take for a constant
        grids = self._grids(x, img_shapes)
        patches, (height, width) = self.patch_embed(x)
        patches = patches.unflatten(1, (height, width))
        if len(set(grids)) == 1:
            height, width = grids[0]
            patches = patches[:, :height, :width].flatten(1, 2)
            positions = self._positions(grids[0])[:, None]
            mask = None
        else:
            patches = pad_sequence(
                [image[:h, :w].flatten(0, 1) for image, (h, w) in zip(patches, grids, strict=True)],
                batch_first=True,
            )
            positions, mask = self._padded_positions(grids)
        self._count_tokens(num_images, positions.shape[2], mask)
        # Not indexed: each gradient would be as large as all of them. Popped: none is left in
        # memory when the last block, where training needs most, is computed.
        positions = list(positions.unbind())[::-1]
        cls_token = self.cls_token.expand(num_images, -1, -1)
        det_token = self.det_token.expand(num_images, -1, -1)
        x = torch.cat((cls_token, patches, det_token), dim=1) + positions.pop()
        x = self.pre_norm(self.drop_after_pos(x))
        for layer in self.layers:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, mask, use_reentrant=False)
            else:
                x = layer(x, mask)
            reduction = getattr(layer.attn, 'reduction', None)
            if reduction is not None and reduction.choice is not None:
                # The positions that are still to be added go with the tokens.
                mask = reduction.choice.mask
                positions = [reduction.choice.apply(own) for own in positions]
            if positions:
                x = x + positions.pop()
        # Norm is per token, and only these tokens are used.
        x = x[:, -self.num_det_tokens :]
        return (self.ln1(x) if self.final_norm else x,)

    def _count_tokens(self, num_images: int, num_tokens: int, mask: Tensor | None) -> None:
        """Note which tokens count, as :class:`mcf_mm.pruning.streams.Tokens` asks for."""
        if torch.jit.is_tracing() or _is_compiling():
            return  # it would become a part of the program
        device = self.pos_embed.device
        counted = torch.ones(num_images, num_tokens, dtype=torch.bool, device=device)
        if mask is not None:
            counted &= mask[:, 0, 0]
        counted[:, 0] = False  # nobody reads the class token
        self.counted_tokens = counted

    def _grids(
        self, x: Tensor, img_shapes: Sequence[tuple[int, int]] | None
    ) -> list[tuple[int, int]]:
        """Rows and columns of whole patches in each image."""
        if img_shapes is None or not self.mask_padding:
            img_shapes = [x.shape[-2:]]  # of all of them
        rows, columns = self.patch_embed.projection.kernel_size
        grids = [(shape[0] // rows, shape[1] // columns) for shape in img_shapes]
        for i, grid in enumerate(grids):
            if 0 in grid:
                raise ValueError(
                    f'image {i} of the batch has {img_shapes[i][0]} x {img_shapes[i][1]} pixels, '
                    f'less than one patch of {rows} x {columns}'
                )
        return grids

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of an image without padding.

        Args:
            grid: Rows and columns of patches.

        Returns:
            ``(L, 1 + rows * columns + num_det_tokens, C)``: for the input and, in type I, for
            after each block but the last.
        """
        # With gradients they are computed anew, also in evaluation mode: what is remembered leads
        # to no parameter, and the optimizer may change the parameters after this pass.
        if self.training or torch.is_grad_enabled():
            self._forget_positions()
        elif grid in self._cached_positions:
            self._cached_positions.move_to_end(grid)
            return self._cached_positions[grid]
        embeds = self.pos_embed
        if self.mid_pos_embed is not None:
            embeds = torch.cat((embeds, self.mid_pos_embed.squeeze(1)))
        # The grids are compared, not the counts: 54 x 32 patches are not 32 x 54.
        if grid != tuple(self.patch_resolution):
            cls_part, patch_part, det_part = self._split(embeds)
            patch_part = resize_positions(patch_part, self.patch_resolution, grid, extra=0)
            embeds = torch.cat((cls_part, patch_part, det_part), dim=1)
        if not self.training and not torch.is_grad_enabled():
            self._cached_positions[grid] = embeds
            if len(self._cached_positions) > CACHED_GRIDS:
                self._cached_positions.popitem(last=False)
        return embeds

    def _padded_positions(self, grids: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Position embeddings ``(L, B, N, C)`` and attention mask ``(B, 1, 1, N)``.

        The patches of an image come first, then its padding, then the detection tokens.
        """
        by_grid = {grid: self._positions(grid) for grid in set(grids)}
        num_tokens = max(embeds.shape[1] for embeds in by_grid.values())
        mask = torch.ones(len(grids), 1, 1, num_tokens, dtype=torch.bool)
        padded = []
        for i, grid in enumerate(grids):
            cls_part, patch_part, det_part = self._split(by_grid[grid])
            padding = num_tokens - by_grid[grid].shape[1]
            padded.append(torch.cat((cls_part, F.pad(patch_part, (0, 0, 0, padding)), det_part), 1))
            start = 1 + patch_part.shape[1]
            mask[i, ..., start : start + padding] = False
        return torch.stack(padded, dim=1), mask.to(self.pos_embed.device)

    def _split(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """Parts of ``(L, N, C)`` for CLS, patches and DET."""
        num_patches = embeds.shape[1] - 1 - self.num_det_tokens
        return embeds.split((1, num_patches, self.num_det_tokens), dim=1)

    def train(self, mode: bool = True) -> 'YOLOSVisionTransformer':
        """Switches between training and evaluation; remembered position embeddings are lost."""
        self._forget_positions()
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._forget_positions()  # .to() and .half() do not reach them
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        # Copies and pickles go without them: they may be several times as large as the weights.
        return {
            **self.__dict__,
            '_cached_positions': OrderedDict(),
            'counted_tokens': None,
        }

    def _forget_positions(self) -> None:
        self._cached_positions.clear()

    def _prepare_pos_embed(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args
    ) -> None:
        """Turns the position embedding of a classifier into one for detection."""
        self._forget_positions()
        name = prefix + 'pos_embed'
        if name not in state_dict:
            return
        embed = state_dict[name]
        noted = self._noted_grid(local_metadata, embed)
        if prefix + 'det_token' in state_dict:
            for name in ('det_token', 'pos_embed', 'mid_pos_embed'):
                self._check_positions(state_dict, prefix, name)
            if noted not in (None, tuple(self.patch_resolution)):
                raise ValueError(
                    f'{prefix}pos_embed of the checkpoint is for {noted[0]} x {noted[1]} patches, '
                    f'the model for {self.patch_resolution[0]} x {self.patch_resolution[1]}: set '
                    'img_size as it was in its training'
                )
            return
        # A classifier's: one for the class token, then its grid.
        grid = find_grid(embed.shape[1] - 1, tuple(self.patch_resolution), noted=noted, name=name)
        cls_part, patch_part = embed[:, :1], embed[:, 1:]
        patch_part = resize_positions(patch_part, grid, self.patch_resolution, extra=0)
        det_part = self._split(self.pos_embed.detach())[2].to(embed)
        state_dict[name] = torch.cat((cls_part, patch_part, det_part), dim=1)

    def _check_positions(self, state_dict: dict, prefix: str, name: str) -> None:
        """Refuses an embedding of a detector that this one cannot take over."""
        own = getattr(self, name)
        if own is None:
            if prefix + name in state_dict:
                raise ValueError(
                    f'the checkpoint of a detector has {prefix + name!r}: it is of type I, build '
                    'the backbone with with_mid_pos_embed=True'
                )
            return
        if prefix + name not in state_dict:
            raise ValueError(
                f'the checkpoint of a detector lacks {prefix + name!r}: it is of type II, build '
                'the backbone with with_mid_pos_embed=False'
            )
        shape = tuple(state_dict[prefix + name].shape)
        if shape != tuple(own.shape):
            raise ValueError(
                f'{prefix + name} of the checkpoint has shape {shape}, the model '
                f'{tuple(own.shape)}: set img_size and num_det_tokens as they were in its training'
            )


def _init_embed(embed: nn.Parameter) -> None:
    """Truncated normal; the public limit of 2 is none, but torch 2.1 draws it now and then."""
    trunc_normal_(embed, std=0.02, a=-0.1, b=0.1)
