"""mmpretrain's VisionTransformer with an own size for each feed-forward network."""

from collections.abc import Sequence

from mmpretrain.models import VisionTransformer

from mcf_mm.checkpoint import read_state_dict
from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.pruning.targets import find_ffns
from mcf_mm.registry import MODELS


@MODELS.register_module()
class SlimVisionTransformer(VisionTransformer):
    """Vision Transformer whose FFNs read C' of C inputs and have H' hidden units.

    Dense when no size is given: then it has the parameters and keys of mmpretrain's class. A
    layer with C' < C has a buffer ``inputs`` with the indices it reads, so that the state dict
    is complete.

    Args:
        *args: As for :class:`mmpretrain.models.VisionTransformer`.
        ffn_inputs: C', one for all layers or one each. Defaults to None, all C.
        ffn_hiddens: H', one for all layers or one each. Defaults to None, as in ``arch``.
        sizes: ``'auto'`` takes the sizes from the checkpoint: from the one of ``init_cfg`` when
            the network is built, and from any other when it is loaded. Defaults to None.
        init_cfg: As in MMEngine. Defaults to None.
        **kwargs: As for :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        ValueError: A size is out of range or there is not one for each layer; ``sizes`` is given
            together with explicit sizes; a checkpoint has other sizes or lacks this backbone's
            weights.

    Example:
        >>> backbone = dict(
        ...     type='mcf_mm.SlimVisionTransformer', arch='deit-small', sizes='auto',
        ...     init_cfg=dict(type='Pretrained', checkpoint='slim.safetensors', prefix='backbone.'))
    """

    def __init__(
        self,
        *args,
        ffn_inputs: int | Sequence[int] | None = None,
        ffn_hiddens: int | Sequence[int] | None = None,
        sizes: str | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ):
        super().__init__(*args, init_cfg=init_cfg, **kwargs)
        if sizes not in (None, 'auto'):
            raise ValueError(f"sizes must be None or 'auto', got {sizes!r}")
        if sizes == 'auto' and (ffn_inputs is not None or ffn_hiddens is not None):
            raise ValueError("give either sizes='auto' or ffn_inputs and ffn_hiddens, not both")
        self.sizes = sizes
        self._set_sizes(
            self._size_per_layer('ffn_inputs', ffn_inputs, self.embed_dims),
            self._size_per_layer(
                'ffn_hiddens', ffn_hiddens, self.arch_settings['feedforward_channels']
            ),
        )
        if sizes == 'auto' and init_cfg and init_cfg.get('type') == 'Pretrained':
            state_dict = read_state_dict(init_cfg['checkpoint'])
            self._take_sizes(state_dict, init_cfg.get('prefix', ''), init_cfg['checkpoint'])
        # Before mmpretrain's own hook nothing is copied, so a bad checkpoint changes nothing.
        self._register_load_state_dict_pre_hook(self._check_checkpoint)

    def _size_per_layer(self, argument: str, value, full: int) -> list[int]:
        """One checked size for each layer."""
        sizes = [full if value is None else value] if isinstance(value, int | None) else list(value)
        if len(sizes) == 1:
            sizes = sizes * self.num_layers
        if len(sizes) != self.num_layers:
            raise ValueError(
                f'{argument} has {len(sizes)} entries for {self.num_layers} layers: give one '
                'number, or one for each layer'
            )
        for layer, size in enumerate(sizes):
            if not 1 <= size <= full:
                raise ValueError(f'{argument}[{layer}] is {size}, it must be from 1 to {full}')
        return sizes

    def _set_sizes(self, ffn_inputs: Sequence[int], ffn_hiddens: Sequence[int]) -> None:
        for ffn, *sizes in zip(find_ffns(self), ffn_inputs, ffn_hiddens, strict=True):
            resize_ffn(ffn, *sizes)

    def _take_sizes(self, state_dict: dict, prefix: str, source: str) -> None:
        """Takes the size of every FFN from ``state_dict``; nothing else is read."""
        if prefix and not prefix.endswith('.'):
            prefix += '.'
        shapes = []
        for ffn in find_ffns(self):
            key = f'{prefix}{ffn.name}.{ffn.fc1_path}.weight'
            if key not in state_dict:
                raise ValueError(
                    f"sizes='auto': {source} has no {key!r}. It has keys such as "
                    f'{list(state_dict)[:3]}; set the prefix of init_cfg to what stands before '
                    f"'{ffn.name}' there"
                )
            shapes.append(tuple(state_dict[key].shape))
        hiddens, inputs = zip(*shapes, strict=True)
        self._set_sizes(
            self._size_per_layer('ffn_inputs', inputs, self.embed_dims),
            self._size_per_layer('ffn_hiddens', hiddens, max(hiddens)),
        )

    #: Weights that a checkpoint of another task need not have; subclasses name theirs.
    new_weights: tuple[str, ...] = ()

    def _check_checkpoint(self, state_dict: dict, prefix: str, *args) -> None:
        """Refuses weights that do not fit, which MMEngine would pass over with a warning."""
        if self.sizes == 'auto':
            self._take_sizes(state_dict, prefix, 'the checkpoint')
        missing = [
            name
            for name in self.state_dict()
            if prefix + name not in state_dict and name not in self.new_weights
        ]
        # An index that is missing is told as a difference in size, below.
        missing = [name for name in missing if not name.endswith('.inputs')]
        if missing:
            raise ValueError(
                f'the checkpoint lacks {len(missing)} of the weights of {type(self).__name__}, the '
                f'first {prefix + missing[0]!r}; it has keys such as {list(state_dict)[:3]}. '
                'Convert it with tools/convert_checkpoint.py or set the prefix of init_cfg'
            )
        for ffn in find_ffns(self):
            hidden, inputs = state_dict[f'{prefix}{ffn.name}.{ffn.fc1_path}.weight'].shape
            if (inputs, hidden) != ffn.sizes:
                raise ValueError(
                    f'{prefix}{ffn.name}: the checkpoint has {inputs} inputs and {hidden} hidden '
                    f'units, the model {ffn.sizes[0]} and {ffn.sizes[1]}. Set '
                    "sizes='auto' or the ffn_inputs and ffn_hiddens of the checkpoint"
                )
            index = f'{prefix}{ffn.name}.{ffn.fc1_path}.inputs'
            if inputs < self.embed_dims and index not in state_dict:
                raise ValueError(f'the checkpoint lacks {index!r}, the inputs that are kept')
