"""Datasets and transforms, registered in :mod:`mcf_mm.registry`."""

from mcf_mm.datasets.coco import CocoDataset
from mcf_mm.datasets.coco_metric import CocoMetric
from mcf_mm.datasets.loading import LoadImageFromFile
from mcf_mm.datasets.samplers import ShortEpochSampler
from mcf_mm.datasets.transforms import PatchResize

__all__ = ['CocoDataset', 'CocoMetric', 'LoadImageFromFile', 'PatchResize', 'ShortEpochSampler']
