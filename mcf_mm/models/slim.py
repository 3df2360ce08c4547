"""Gives the units of any network their sizes, and checks that checkpoints fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mcf_mm.models.lora import adopt_lora, has_lora
from mcf_mm.pruning.find import find_units
from mcf_mm.pruning.policy import check_sizes
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.surgery import resize
from mcf_mm.pruning.token_units import Tokens
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Attention, Units
from mcf_mm.registry import is_pretrained
from mcf_mm.weights.check import check_weights
from mcf_mm.weights.checkpoint import RESIZED, read_state_dict
from mcf_mm.weights.sizes import check_tokens, sizes_in

AUTO = 'auto'
#: Old arguments by kind, from mcf_mm 0.1.
OLD_ARGUMENTS = {'inputs': 'ffn_inputs', 'hidden': 'ffn_hiddens'}


class SlimUnits:
    """Mixin: a network whose units have sizes of their own.

    Dense when no size is given: then the network has the parameters and keys of the class it is
    mixed into. What a layer with C' < C inputs reads is in its buffer ``inputs``, and the sizes of
    a pruned attention in its buffer ``sizes``, so that the state dict is complete. The scale of
    the softmax is that of the dense network.

    Args:
        *args: As for the class it is mixed into.
        sizes: How many elements the units keep.

            - ``None``: all.
            - ``{kind: n}`` or ``{kind: [n, ...]}``: by kind (``inputs`` and ``hidden`` of an FFN;
              ``heads``, ``qk`` and ``v`` of an attention, the last two of each head; ``tokens``
              behind the attention of some blocks). One number
              for all units, or one for each unit that has the kind, in the order of the forward
              pass. Kinds that are not named stay dense.
            - ``{unit: {kind: n}}``: by unit, such as ``'layers.3.ffn'``.
            - ``'auto'``: those of the checkpoint; of the one of ``init_cfg`` when the network is
              built, and of any other when it is loaded.

            Defaults to None.
        ffn_inputs: The same as ``sizes=dict(inputs=...)``, for configs of mcf_mm 0.1.
        ffn_hiddens: The same as ``sizes=dict(hidden=...)``, for configs of mcf_mm 0.1.
        ffn_selection: ``'layer'``, for configs of mcf_mm 0.1.
        init_cfg: As in MMEngine. Defaults to None.
        **kwargs: As for the class it is mixed into.

    Raises:
        ValueError: ``sizes`` has another form, names what the network lacks, is out of range, or
            is given together with old arguments; a checkpoint has other sizes or lacks this
            network's weights.
    """

    #: Weights that a checkpoint of another task need not have; subclasses name theirs.
    new_weights: tuple[str, ...] = ()
    #: Whether a subclass calls :meth:`_set_sizes` itself, at the end of its ``__init__``.
    sets_sizes_itself = False

    def __init__(
        self,
        *args,
        sizes: str | Mapping[str, Any] | None = None,
        ffn_inputs: int | Sequence[int] | None = None,
        ffn_hiddens: int | Sequence[int] | None = None,
        ffn_selection: str = 'layer',
        init_cfg: dict | None = None,
        **kwargs,
    ):
        super().__init__(*args, init_cfg=init_cfg, **kwargs)
        old = dict(inputs=ffn_inputs, hidden=ffn_hiddens)
        old = {kind: value for kind, value in old.items() if value is not None}
        if sizes is not None and old:
            raise ValueError(
                f'give either sizes={sizes!r} or {" and ".join(OLD_ARGUMENTS[k] for k in old)}, '
                'not both'
            )
        check_selection(ffn_selection)
        self.sizes, self._old_sizes = sizes, old
        if not self.sets_sizes_itself:
            self._set_sizes()
        # Before the class's own hooks nothing is copied, so a bad checkpoint changes nothing.
        self._register_load_state_dict_pre_hook(self._before_load)

    def _set_sizes(self) -> None:
        """Give the units the sizes that the arguments say."""
        sizes, old, init_cfg = self.sizes, self._old_sizes, self.init_cfg
        units = find_units(self)
        self._dense_sizes = units.all_sizes
        if old:
            sizes = {}
            for kind, value in old.items():
                _add(sizes, units, kind, value, OLD_ARGUMENTS[kind])
        elif sizes is not None and sizes != AUTO:
            sizes = expand_sizes(units, sizes)
        if isinstance(sizes, Mapping):
            resize_all(units, sizes)
        elif sizes == AUTO and is_pretrained(init_cfg):
            checkpoint = init_cfg['checkpoint']
            self._take_sizes(read_state_dict(checkpoint), init_cfg.get('prefix', ''), checkpoint)

    @property
    def out_channels(self) -> list[int]:
        """Width of each output; all the same here, pyramids such as Swin have their own."""
        return [self.embed_dims] * len(self.out_indices)

    def train(self, mode: bool = True) -> nn.Module:
        """As in torch; mmpretrain's returns None."""
        super().train(mode)
        # The first that happens to the network after LoRA was put around its layers.
        adopt_lora(self)
        return self

    def _take_sizes(self, state_dict: Mapping[str, Tensor], prefix: str, source: str) -> None:
        """Take the sizes of all units from ``state_dict``; nothing else is read."""
        units = find_units(self)
        check_tokens(state_dict, units, prefix, source)
        sizes = sizes_in(state_dict, units.every, prefix, source)
        for name, kinds in sizes.items():
            for kind, size in kinds.items():
                if size > (dense := self._dense_sizes[name][kind]):
                    raise ValueError(
                        f'{kind} of {name} is {size} in {source}, it must be from 1 to {dense}: '
                        'is it a checkpoint of a larger network?'
                    )
        resize_all(units, sizes)

    def _before_load(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        new = self.new_weights
        if has_lora(self):
            # An adapter brings its own weights alone; the others were loaded before.
            adopt_lora(self)
            new = [name for name in self.state_dict() if '.lora_' not in name]
        elif self.sizes == AUTO:
            self._take_sizes(state_dict, prefix, 'the checkpoint')
        check_checkpoint(self, state_dict, prefix, new)


def check_selection(selection: str) -> None:
    """Check the argument ``ffn_selection`` of mcf_mm 0.1.

    Raises:
        ValueError: It is not ``'layer'``.
    """
    if selection != 'layer':
        raise ValueError(
            f"ffn_selection must be 'layer', got {selection!r}: networks whose rows read inputs of "
            "their own ('row') are no more, prune the dense network again"
        )


def expand_sizes(
    units: Units, sizes: Mapping[str, Any], argument: str = 'sizes'
) -> dict[str, dict[str, int]]:
    """Sizes by unit from either form that a config may have.

    Args:
        units: Units of the dense network.
        sizes: ``{kind: n}``, ``{kind: [n, ...]}`` or ``{unit: {kind: n}}``.
        argument: What the user calls it, for errors.

    Returns:
        ``{unit: {kind: n}}``, of the units and kinds that are named.

    Raises:
        ValueError: It has another form, names what the network lacks, is out of range, or has not
            one number for each unit.
    """
    if not isinstance(sizes, Mapping):
        raise ValueError(
            f'{argument} must be {{kind: number, or one for each unit}} or {{unit: {{kind: '
            f"number}}}}, for slim classes also 'auto' or None, got {sizes!r}"
        )
    by_unit = [isinstance(value, Mapping) for value in sizes.values()]
    if any(by_unit):
        if not all(by_unit):
            raise ValueError(f'{argument} must name either units or kinds, got both: {list(sizes)}')
        check_sizes(units, sizes, argument)
        return {name: dict(kinds) for name, kinds in sizes.items()}
    expanded: dict[str, dict[str, int]] = {}
    for kind, value in sizes.items():
        _add(expanded, units, kind, value, f'{argument}[{kind!r}]')
    return expanded


def _add(
    sizes: dict[str, dict[str, int]],
    units: Units,
    kind: str,
    value: int | Sequence[int],
    argument: str,
) -> None:
    """Add the sizes of one kind, one number for all units or one for each."""
    own = [unit for unit in units.every if kind in unit.kinds]
    if not own:
        known = sorted({kind for unit in units.every for kind in unit.kinds})
        raise ValueError(f'{argument}: the network has no {kind!r}, but {known}')
    if isinstance(value, str) or not isinstance(value, int | Sequence):
        raise ValueError(f'{argument} must be a number or one for each unit, got {value!r}')
    numbers = [value] * len(own) if isinstance(value, int) else list(value)
    if len(numbers) == 1:
        numbers = numbers * len(own)
    if len(numbers) != len(own):
        raise ValueError(
            f'{argument} has {len(numbers)} entries for {len(own)} units: give one number, or one '
            'for each unit'
        )
    for index, (unit, number) in enumerate(zip(own, numbers, strict=True)):
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not 1 <= number <= unit.sizes[kind]:
            raise ValueError(
                f'{argument}[{index}] is {number!r}, it must be from 1 to {unit.sizes[kind]} for '
                f'{unit.name}'
            )
        sizes.setdefault(unit.name, {})[kind] = number


def resize_all(units: Units, sizes: Sizes) -> None:
    """Give units their sizes; those that are not named stay."""
    for unit in units.every:
        resize(unit, sizes.get(unit.name, {}))


def check_checkpoint(
    model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, new: Sequence[str] = ()
) -> None:
    """Refuse weights that do not fit, which MMEngine would pass over with a warning.

    Args:
        model: Network that is about to load ``state_dict``.
        state_dict: The weights.
        prefix: What stands before the names of ``model`` there.
        new: Names that a checkpoint need not have. Defaults to none.

    Raises:
        ValueError: Weights are missing or have other sizes.
    """
    units = find_units(model)
    check_tokens(state_dict, units, prefix)
    there = [unit for unit in units.every if _is_in(state_dict, prefix, unit)]
    sizes = sizes_in(state_dict, there, prefix)
    for unit in there:
        if sizes[unit.name] != unit.sizes:
            raise ValueError(
                f'{prefix}{unit.name}: the checkpoint has {_told(sizes[unit.name])}, the model '
                f"{_told(unit.sizes)}. Set sizes='auto' or the sizes of the checkpoint"
            )
    check_weights(model, state_dict, prefix=prefix, new=new, resized=RESIZED)


def _is_in(state_dict: Mapping[str, Tensor], prefix: str, unit: Unit) -> bool:
    """Whether all weights that tell the sizes of a unit are there."""
    if isinstance(unit, Tokens):
        unit = unit.attention
    paths = (
        (*unit.layout.qkv_names, unit.layout.proj_name)
        if isinstance(unit, Attention)
        else (unit.fc1_path, unit.fc2_path)
    )
    start = f'{prefix}{unit.name}.' if unit.name else prefix
    return all(f'{start}{path}.weight' in state_dict for path in paths)


def _told(sizes: Mapping[str, int]) -> str:
    return ', '.join(f'{size} {kind}' for kind, size in sizes.items())
