"""Gives the FFNs of any network their sizes, and refuses checkpoints that do not fit."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.pruning.targets import FFN, find_ffns
from mcf_mm.weights.checkpoint import read_state_dict

AUTO = 'auto'


def check_sizes(argument: str, value: int | Sequence[int] | None, full: Sequence[int]) -> list[int]:
    """One checked size for each FFN.

    Args:
        argument: What the user calls it, for error messages.
        value: One size for all FFNs, or one each; None for the full sizes.
        full: Largest size of each FFN.

    Raises:
        ValueError: A size is out of range, or there is not one for each FFN.
    """
    if value is None:
        return list(full)
    sizes = [value] * len(full) if isinstance(value, int) else list(value)
    if len(sizes) == 1:
        sizes = sizes * len(full)
    if len(sizes) != len(full):
        raise ValueError(
            f'{argument} has {len(sizes)} entries for {len(full)} layers: give one number, or one '
            'for each layer'
        )
    for layer, (size, largest) in enumerate(zip(sizes, full, strict=True)):
        if not 1 <= size <= largest:
            raise ValueError(f'{argument}[{layer}] is {size}, it must be from 1 to {largest}')
    return sizes


def sizes_in(
    state_dict: Mapping[str, Tensor], ffns: Sequence[FFN], prefix: str, source: str
) -> dict[str, tuple[int, int, str]]:
    """Reads the size of every FFN from a checkpoint.

    Args:
        state_dict: Its weights.
        ffns: FFNs of the network that is to load it.
        prefix: What stands before the names of the network in the checkpoint.
        source: What to call the checkpoint in an error.

    Returns:
        Inputs C', hidden units H' and kind of selection (``'layer'`` or ``'row'``), by FFN name.

    Raises:
        ValueError: An FFN is not in the checkpoint.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    sizes = {}
    for ffn in ffns:
        first = f'{prefix}{ffn.name}.{ffn.fc1_path}'
        second = f'{prefix}{ffn.name}.{ffn.fc2_path}'
        for key in (f'{first}.weight', f'{second}.weight'):
            if key not in state_dict:
                raise ValueError(
                    f'{source} has no {key!r}, which its sizes are read from: is it a checkpoint '
                    f'of this network? It has keys such as {list(state_dict)[:3]}; the prefix of '
                    f"init_cfg must be what stands before '{ffn.name}' there"
                )
        inputs = state_dict[f'{first}.weight'].shape[1]
        hiddens = state_dict[f'{second}.weight'].shape[1]
        # Rows that keep inputs of their own (CRS without X-Transformation) have an index each.
        index = state_dict.get(f'{second}.inputs')
        sizes[ffn.name] = (inputs, hiddens, 'layer' if index is None else 'row')
    return sizes


def check_checkpoint(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, new_weights: Sequence[str]
) -> None:
    """Refuses weights that do not fit, which MMEngine would pass over with a warning.

    Args:
        module: Network that is about to load ``state_dict``.
        state_dict: The weights.
        prefix: What stands before the names of ``module`` there.
        new_weights: Names that a checkpoint need not have.

    Raises:
        ValueError: Weights are missing or have other sizes.
    """
    missing = [
        name
        for name in module.state_dict()
        if prefix + name not in state_dict
        and name not in new_weights
        # An index that is missing is told as a difference in size, below.
        and not name.endswith('.inputs')
    ]
    if missing:
        raise ValueError(
            f'the checkpoint lacks {len(missing)} of the weights of {type(module).__name__}, the '
            f'first {prefix + missing[0]!r}; it has keys such as {list(state_dict)[:3]}. '
            'Convert it with tools/convert_checkpoint.py or set the prefix of init_cfg'
        )
    ffns = find_ffns(module)
    there = sizes_in(state_dict, ffns, prefix, 'the checkpoint')
    for ffn in ffns:
        inputs, hiddens, selection = there[ffn.name]
        if (inputs, hiddens) != ffn.sizes:
            raise ValueError(
                f'{prefix}{ffn.name}: the checkpoint has {inputs} inputs and {hiddens} hidden '
                f'units, the model {ffn.sizes[0]} and {ffn.sizes[1]}. Set '
                "sizes='auto' or the ffn_inputs and ffn_hiddens of the checkpoint"
            )
        if selection != ffn.selection:
            raise ValueError(
                f'{prefix}{ffn.name}: the checkpoint selects inputs by {selection}, the model by '
                f"{ffn.selection}. Set sizes='auto' or ffn_selection={selection!r}"
            )
        for path in (ffn.fc1_path, ffn.fc2_path):
            index = f'{ffn.name}.{path}.inputs'
            if index in module.state_dict() and prefix + index not in state_dict:
                raise ValueError(
                    f'the checkpoint lacks {prefix + index!r}, the inputs that are kept'
                )


class SlimFFNs:
    """Mixin: a network whose FFNs have sizes of their own.

    Dense when no size is given: then the network has the parameters and keys of the class it is
    mixed into. A layer with C' < C has a buffer ``inputs`` with the indices it reads, so that the
    state dict is complete.

    Args:
        *args: As for the class it is mixed into.
        ffn_inputs: C', one for all FFNs or one each in the order of the forward pass. Defaults to
            None, all C.
        ffn_hiddens: H', one for all FFNs or one each. Defaults to None, all.
        ffn_selection: ``'layer'`` when the rows of a layer read the same inputs, ``'row'`` when
            each has its own (CRS without X-Transformation). Defaults to ``'layer'``.
        sizes: ``'auto'`` takes all of this from the checkpoint: from the one of ``init_cfg`` when
            the network is built, and from any other when it is loaded. Defaults to None.
        init_cfg: As in MMEngine. Defaults to None.
        **kwargs: As for the class it is mixed into.

    Raises:
        ValueError: A size is out of range or there is not one for each FFN; ``sizes`` is given
            together with explicit sizes; a checkpoint has other sizes or lacks this network's
            weights.
    """

    #: Weights that a checkpoint of another task need not have; subclasses name theirs.
    new_weights: tuple[str, ...] = ()

    def __init__(
        self,
        *args,
        ffn_inputs: int | Sequence[int] | None = None,
        ffn_hiddens: int | Sequence[int] | None = None,
        ffn_selection: str = 'layer',
        sizes: str | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ):
        super().__init__(*args, init_cfg=init_cfg, **kwargs)
        if sizes not in (None, AUTO):
            raise ValueError(f"sizes must be None or 'auto', got {sizes!r}")
        if sizes == AUTO and (ffn_inputs is not None or ffn_hiddens is not None):
            raise ValueError("give either sizes='auto' or ffn_inputs and ffn_hiddens, not both")
        if ffn_selection not in ('layer', 'row'):
            raise ValueError(f"ffn_selection must be 'layer' or 'row', got {ffn_selection!r}")
        self.sizes = sizes
        ffns = find_ffns(self)
        self._full_sizes = {ffn.name: (ffn.width, ffn.fc1.out_features) for ffn in ffns}
        full_inputs, full_hiddens = zip(*self._full_sizes.values(), strict=True)
        self._set_sizes(
            check_sizes('ffn_inputs', ffn_inputs, full_inputs),
            check_sizes('ffn_hiddens', ffn_hiddens, full_hiddens),
            [ffn_selection] * len(ffns),
        )
        if sizes == AUTO and init_cfg and init_cfg.get('type') == 'Pretrained':
            state_dict = read_state_dict(init_cfg['checkpoint'])
            self._take_sizes(state_dict, init_cfg.get('prefix', ''), init_cfg['checkpoint'])
        # Before the class's own hooks nothing is copied, so a bad checkpoint changes nothing.
        self._register_load_state_dict_pre_hook(self._before_load)

    @property
    def out_channels(self) -> list[int]:
        """Width of each output; all the same here, pyramids such as Swin have their own."""
        return [self.embed_dims] * len(self.out_indices)

    def _set_sizes(
        self, inputs: Sequence[int], hiddens: Sequence[int], selections: Sequence[str]
    ) -> None:
        for ffn, *sizes in zip(find_ffns(self), inputs, hiddens, selections, strict=True):
            resize_ffn(ffn, *sizes, full_hiddens=self._full_sizes[ffn.name][1])

    def _take_sizes(self, state_dict: Mapping[str, Tensor], prefix: str, source: str) -> None:
        """Takes the size of every FFN from ``state_dict``; nothing else is read."""
        there = sizes_in(state_dict, find_ffns(self), prefix, source)
        inputs, hiddens, selections = zip(*there.values(), strict=True)
        full_inputs, full_hiddens = zip(*self._full_sizes.values(), strict=True)
        self._set_sizes(
            check_sizes(f'ffn_inputs of {source}', inputs, full_inputs),
            check_sizes(f'ffn_hiddens of {source}', hiddens, full_hiddens),
            selections,
        )

    def _before_load(self, state_dict: dict, prefix: str, *args) -> None:
        if self.sizes == AUTO:
            self._take_sizes(state_dict, prefix, 'the checkpoint')
        check_checkpoint(self, state_dict, prefix, self.new_weights)
