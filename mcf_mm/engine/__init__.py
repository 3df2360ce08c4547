"""What MMEngine's Runner needs; hooks decide when, ``mcf_mm.pruning`` does the work."""

from mcf_mm.engine.hooks import (
    AtomicCheckpointHook,
    ClassCountHook,
    EpochSeedHook,
    FiniteLossHook,
    HoldZerosHook,
    MCFPruningHook,
    PruningHook,
    SameRunHook,
    TeacherHook,
)
from mcf_mm.engine.teacher import Teacher

__all__ = [
    'AtomicCheckpointHook',
    'ClassCountHook',
    'EpochSeedHook',
    'FiniteLossHook',
    'HoldZerosHook',
    'MCFPruningHook',
    'PruningHook',
    'SameRunHook',
    'Teacher',
    'TeacherHook',
]
