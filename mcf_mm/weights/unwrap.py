"""Gets the weights out of a checkpoint, whatever program wrote it."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: Keys under which programs store the weights of the last step, in order of preference.
PLAIN = ('state_dict', 'model', 'model_state_dict', 'model_state', 'module', 'network', 'net')
#: Keys of averages (EMA), which are taken where there is nothing else.
AVERAGES = (
    'ema_state_dict',
    'state_dict_ema',
    'model_ema',
    'model_ema_state_dict',
    'ema_model',
    'ema',
    'teacher',
)
#: What wrappers put before every name: DistributedDataParallel, torch.compile, averages.
WRAPPERS = ('module.', '_orig_mod.', 'ema_model.', 'ema.')
#: What averages count beside the weights.
COUNTERS = ('steps', 'n_averaged', 'num_updates')


def unwrap(checkpoint: Mapping[str, Any]) -> tuple[Mapping[str, Tensor], str | None]:
    """Gets the weights out of a checkpoint.

    Plain weights are preferred to an average. Of MMEngine's ``EMAHook`` ``state_dict`` is the
    average, ``ema_state_dict`` what was averaged.

    Args:
        checkpoint: What a file holds: weights at the top level, or under keys such as
            ``'state_dict'``, ``'model'`` or ``'model_ema'``, also nested.

    Returns:
        The weights, without prefixes of wrappers (``module.``, ``_orig_mod.``) and without what is
        no tensor, and a line that says what was taken where there was a choice, else None.

    Raises:
        ValueError: There are no weights.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'no weights in it, but one {type(checkpoint).__name__}')
    taken, left = [], []
    weights = checkpoint
    while keys := [key for key in (*PLAIN, *AVERAGES) if isinstance(weights.get(key), Mapping)]:
        taken.append(keys[0])
        left += keys[1:]
        weights = weights[keys[0]]
    if not taken and not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"no weights at the top level, under 'model' or 'state_dict' (or {', '.join(PLAIN[2:])}"
            f', {", ".join(AVERAGES)}): its keys are {list(map(str, weights))[:5]}'
        )
    return _without_wrappers(weights), _note(taken, left)


def _note(taken: list[str], left: list[str]) -> str | None:
    path = '.'.join(taken)
    if left:
        average = path == 'state_dict' and left == ['ema_state_dict']
        return (
            f'weights are those of {path!r}{", an average (EMAHook)," if average else ""} '
            f'not of {", ".join(map(repr, left))}'
        )
    if any(key in AVERAGES for key in taken):
        return f'weights are those of {path!r}, an average'
    return None


def _without_wrappers(weights: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The same mapping where nothing is to be done; versions of modules are carried along."""
    renamed = {name: name.replace('._orig_mod.', '.') for name in weights}
    while wrapper := _wrapper(renamed.values()):
        renamed = {old: name.removeprefix(wrapper) for old, name in renamed.items()}
    wrapped = any(old != name for old, name in renamed.items())
    kept = {
        old: name
        for old, name in renamed.items()
        if (isinstance(weights[old], Tensor) or name.endswith('_extra_state'))
        and not (wrapped and name in COUNTERS)
    }
    if not wrapped and len(kept) == len(weights):
        return weights
    result = OrderedDict((name, weights[old]) for old, name in kept.items())
    metadata = getattr(weights, '_metadata', None)
    if metadata is not None:
        result._metadata = OrderedDict(
            (_module_name(name), versions) for name, versions in metadata.items()
        )
    return result


def _wrapper(names: Any) -> str | None:
    """The wrapper's prefix that all names have, but for counters."""
    names = [name for name in names if name not in COUNTERS]
    return next((w for w in WRAPPERS if names and all(n.startswith(w) for n in names)), None)


def _module_name(name: str) -> str:
    """The path of a module without wrappers."""
    parts = f'{name}.'.replace('._orig_mod.', '.')
    while wrapper := next((w for w in WRAPPERS if parts.startswith(w)), None):
        parts = parts.removeprefix(wrapper)
    return parts.rstrip('.')
