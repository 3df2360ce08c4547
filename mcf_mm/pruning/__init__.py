"""The method, in torch alone: calibrate -> structure -> surgery.

Data flow of :func:`prune`: images -> :func:`calibrate` (activations of every FFN)
-> :func:`sparsify` (importance by FIS or a baseline, then CRS: a mask for each layer)
-> :func:`x_transformation` (a :class:`Structure`: which inputs and hidden units stay)
-> :func:`compensate` (optional: fold what is dropped into what stays)
-> :func:`prune_ffns` (parameters shrink in place).
"""

from mcf_mm.pruning.calibration import Calibration, CalibrationError, calibrate
from mcf_mm.pruning.compensation import compensate
from mcf_mm.pruning.fis import band_limit, count_outside, guided_rows
from mcf_mm.pruning.oneshot import prune, sparsify
from mcf_mm.pruning.regular import SparseFFN, regular_sparsity, x_transformation
from mcf_mm.pruning.slim import SlimLinear
from mcf_mm.pruning.structure import Kept, Structure, kept_size
from mcf_mm.pruning.surgery import prune_ffns
from mcf_mm.pruning.targets import FFN, find_classifier, find_ffns

__all__ = [
    'FFN',
    'Calibration',
    'CalibrationError',
    'Kept',
    'SlimLinear',
    'SparseFFN',
    'Structure',
    'band_limit',
    'calibrate',
    'compensate',
    'count_outside',
    'find_classifier',
    'find_ffns',
    'guided_rows',
    'kept_size',
    'prune',
    'prune_ffns',
    'regular_sparsity',
    'sparsify',
    'x_transformation',
]
