"""Gives a module of a library a class of ours that computes the same, in place."""

from typing import Any, SupportsIndex

from torch import nn


class Adopted:
    """Mixin of the classes that modules of a library are given.

    Attributes:
        prefix: What the name of the new class begins with.
    """

    prefix = 'Slim'

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        # The class is made when it is needed, so a copy or a pickle has to make it again.
        return _rebuilt, type(self).__bases__, dict(self.__dict__)


def adopted_class(layout: type[Adopted], own: type[nn.Module]) -> type[Any]:
    """The class of an adopted module: still one of its library's class for ``isinstance``.

    Args:
        layout: Our class, which computes the same.
        own: Class of the library.
    """
    if (layout, own) not in _CLASSES:
        name = layout.prefix + own.__name__.removeprefix(layout.prefix)
        _CLASSES[layout, own] = type(name, (layout, own), {'__module__': own.__module__})
    return _CLASSES[layout, own]


def original_class(module: Adopted) -> type[Any]:
    """The library's class of an adopted module."""
    return type(module).__bases__[1]


def _rebuilt(layout: type[Adopted], own: type[nn.Module]) -> Adopted:
    made: Any = adopted_class(layout, own)
    return made.__new__(made)


_CLASSES: dict[tuple[type, type], type] = {}
