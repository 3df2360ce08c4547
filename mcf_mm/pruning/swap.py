"""Copies of units, put in the place of others for a while."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Copies of units of a network as they are.

    A unit that lies in another one, such as an attention in a block, is copied with it.
    """
    names = list(names)
    inside = {n for n in names if any(n.startswith(f'{other}.') for other in names)}
    return {name: copy.deepcopy(model.get_submodule(name)) for name in names if name not in inside}


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other modules in the place of those with these names, for a while."""

    def put(name: str, module: nn.Module) -> nn.Module:
        parent, _, child = name.rpartition('.')
        owner = model.get_submodule(parent)
        before = getattr(owner, child)
        setattr(owner, child, module)
        return before

    before = {name: put(name, module) for name, module in modules.items()}
    try:
        yield
    finally:
        for name, module in before.items():
            put(name, module)
