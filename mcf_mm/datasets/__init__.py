"""Datasets and transforms, registered in :mod:`mcf_mm.registry`."""

from mcf_mm.datasets.samplers import ShortEpochSampler
from mcf_mm.datasets.transforms import PatchResize

__all__ = ['PatchResize', 'ShortEpochSampler']
