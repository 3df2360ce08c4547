"""The method, in torch alone.

    units     = find_units(model)
    seen      = calibrate(model, batches, criterion.observers(units, sizes))
    sizes     = uniform(units, ratios) | threshold(...) | within_budget(...) | a JSON file
    structure = criterion.select(units, sizes, seen)
    compensate(units, structure, seen); cut(model, structure, optimizer)

:func:`prune` is these lines; :func:`heal` trains what they leave for some minutes, without labels.
Units have kinds of elements; a criterion scores elements; a policy says how many stay; surgery does
it.
"""

from mcf_mm.pruning.budget import within_budget
from mcf_mm.pruning.calibration import Seen, calibrate
from mcf_mm.pruning.compensation import compensate
from mcf_mm.pruning.costs import Costs, measure_costs
from mcf_mm.pruning.criteria import MCF, Criterion, build_criterion
from mcf_mm.pruning.find import find_classifier, find_ffns, find_units
from mcf_mm.pruning.gates import Gates, mask
from mcf_mm.pruning.heal import heal
from mcf_mm.pruning.healing import Healed, Healing, split_aside
from mcf_mm.pruning.layers import SlimLinear
from mcf_mm.pruning.observers import (
    ActivationObserver,
    AttentionObserver,
    CalibrationError,
    GradientObserver,
    Observer,
)
from mcf_mm.pruning.policy import read_policy, threshold, uniform
from mcf_mm.pruning.prune import prune
from mcf_mm.pruning.structure import Sizes, Structure, kept_size
from mcf_mm.pruning.surgery import cut, resize
from mcf_mm.pruning.unit import Axis, Unit
from mcf_mm.pruning.units import FFN, Attention, Units

__all__ = [
    'FFN',
    'MCF',
    'ActivationObserver',
    'Attention',
    'AttentionObserver',
    'Axis',
    'CalibrationError',
    'Costs',
    'Criterion',
    'Gates',
    'GradientObserver',
    'Healed',
    'Healing',
    'Observer',
    'Seen',
    'Sizes',
    'SlimLinear',
    'Structure',
    'Unit',
    'Units',
    'build_criterion',
    'calibrate',
    'compensate',
    'cut',
    'find_classifier',
    'find_ffns',
    'find_units',
    'heal',
    'kept_size',
    'mask',
    'measure_costs',
    'prune',
    'read_policy',
    'resize',
    'split_aside',
    'threshold',
    'uniform',
    'within_budget',
]
