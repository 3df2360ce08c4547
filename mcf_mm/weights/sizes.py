"""Sizes of pruned units, read from weights; needs torch alone."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from mcf_mm.pruning.token_units import Tokens
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN, Attention, Units

#: Buffer of an attention that says how many tokens stay, of how many.
TOKENS = 'reduction.tokens'


def sizes_in(
    state_dict: Mapping[str, Tensor],
    units: Iterable[Unit],
    prefix: str = '',
    source: str = 'the checkpoint',
) -> dict[str, dict[str, int]]:
    """Read the size of each unit from weights.

    An FFN is as large as its weights. An attention has a buffer ``sizes`` (heads, q/k and v
    channels of a head) when it is pruned; without one it has the sizes of the dense network. Where
    tokens are dropped, the buffer ``tokens`` says how many stay.

    Args:
        state_dict: The weights.
        units: Units of the network that is to load them, pruned or not.
        prefix: What stands before the names of the network there; a final dot may be left out.
            Defaults to none.
        source: What to call the weights in an error. Defaults to ``'the checkpoint'``.

    Returns:
        Sizes of all units, ``{unit: {kind: n}}``.

    Raises:
        ValueError: A unit is not in the weights, or its weights and sizes contradict each other.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    sizes, arriving = {}, None
    for unit in units:
        name = prefix + unit.name if unit.name else prefix.removesuffix('.')
        weights = Weights(state_dict, name, unit.name, source)
        if isinstance(unit, Tokens):
            arriving = unit.number if arriving is None else arriving
            kept = _tokens(unit, weights, arriving)
            sizes[unit.name] = {'tokens': kept}
            arriving = kept if kept == arriving else kept + 1
        else:
            read = _ffn if isinstance(unit, FFN) else _attention
            sizes[unit.name] = read(unit, weights)
    return sizes


def check_tokens(
    state_dict: Mapping[str, Tensor],
    units: Units,
    prefix: str = '',
    source: str = 'the checkpoint',
) -> None:
    """Check that a network can drop tokens where weights say that they are dropped.

    Args:
        state_dict: The weights.
        units: Units of the network that is to load them.
        prefix: What stands before the names of the network there. Defaults to none.
        source: What to call the weights in an error. Defaults to ``'the checkpoint'``.

    Raises:
        ValueError: It cannot.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    places = {f'{unit.attention.name}.{TOKENS}' for unit in units.tokens}
    for key in state_dict:
        if key.startswith(prefix) and key.endswith(f'.{TOKENS}'):
            name = key.removeprefix(prefix)
            if name not in places:
                attention = units.by_name.get(name.removesuffix(f'.{TOKENS}'))
                reason = getattr(attention, 'missing', {}).get('tokens', 'it has no such block')
                raise ValueError(
                    f'{source} drops tokens ({key}), and this network cannot: {reason}. Detectors '
                    'need all patches, but YOLOS; prune other kinds for them'
                )


class Weights:
    """The weights of one unit.

    Args:
        state_dict: Weights of a network.
        name: Name of the unit there.
        own_name: Name of the unit in the network that is to load it.
        source: What to call the weights in an error.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], name: str, own_name: str, source: str):
        self.state_dict, self.name, self.own_name = state_dict, name, own_name
        self.source = source

    def key(self, path: str) -> str:
        return f'{self.name}.{path}' if self.name else path

    def get(self, path: str) -> Tensor | None:
        return self.state_dict.get(self.key(path))

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of a weight that must be there."""
        weight = self.get(path)
        if weight is None:
            raise ValueError(
                f'{self.source} has no {self.key(path)!r}, which its sizes are read from: is it a '
                f'checkpoint of this network? It has keys such as {list(self.state_dict)[:3]}; the '
                f'prefix of init_cfg must be what stands before {self.own_name!r} there'
            )
        return tuple(weight.shape)

    def error(self, what: str) -> ValueError:
        return ValueError(f'{self.source}: {self.name}: {what}')


def _ffn(unit: FFN, weights: Weights) -> dict[str, int]:
    hidden, inputs = weights.shape(f'{unit.fc1_path}.weight')
    _, read = weights.shape(f'{unit.fc2_path}.weight')
    if hidden != read:
        raise weights.error(
            f'{unit.fc1_path}.weight has {hidden} rows and {unit.fc2_path}.weight {read} columns, '
            'which must be equally many: the hidden units. The file is damaged'
        )
    index = weights.get(f'{unit.fc1_path}.inputs')
    if weights.get(f'{unit.fc2_path}.inputs') is not None or (
        index is not None and index.shape != (inputs,)
    ):
        raise weights.error(
            'the rows of a layer have inputs of their own, as mcf_mm 0.1 could select them '
            "(ffn_selection='row'), which is no more: prune the dense network again"
        )
    return {'inputs': inputs, 'hidden': hidden}


def _tokens(unit: Tokens, weights: Weights, arriving: int) -> int:
    told = weights.get(f'{unit.attention.name.removeprefix(unit.name + ".")}.{TOKENS}')
    if told is None:
        return arriving
    kept, of = (int(number) for number in told)
    if of != arriving or not unit.least <= kept <= of:
        raise weights.error(
            f'{kept} of {of} tokens stay, and {arriving} arrive in the network that is built: '
            'build it for images of the size that it was pruned for'
        )
    return kept


def _attention(unit: Attention, weights: Weights) -> dict[str, int]:
    layout = unit.layout
    rows = [weights.shape(f'{name}.weight')[0] for name in layout.qkv_names]
    columns = weights.shape(f'{layout.proj_name}.weight')[1]
    told = weights.get('sizes')
    if told is None:
        heads, qk, v = layout.dense_sizes(unit.module)
    elif tuple(told.shape) == (3,) and int(told.min()) > 0:
        heads, qk, v = (int(number) for number in told)
    else:
        raise weights.error(
            'its buffer sizes must be three positive numbers (heads, q/k channels and v channels '
            f'of a head), got {told.tolist()}'
        )
    expected = [heads * qk, heads * qk, heads * v]
    if len(rows) == 1:
        expected = [sum(expected)]
    if (rows, columns) != (expected, heads * v):
        which = 'the dense network has' if told is None else 'its buffer sizes says'
        cure = (
            f'A pruned attention needs the buffer {weights.key("sizes")!r} beside its weights; if '
            'it is dense, build the network with its width'
            if told is None
            else 'One of them was changed after pruning'
        )
        raise weights.error(
            f'{which} {heads} heads of {qk} q/k and {v} v channels, which are {expected} rows of '
            f'{" and ".join(layout.qkv_names)} and {heads * v} columns of {layout.proj_name}; the '
            f'weights have {rows} and {columns}. {cure}'
        )
    return {'heads': heads, 'qk': qk, 'v': v}
