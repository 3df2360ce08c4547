"""Configs that mcf_mm 0.1 wrote import this name; new ones import :mod:`mcf_mm.registry`."""

from mcf_mm import registry  # noqa: F401
