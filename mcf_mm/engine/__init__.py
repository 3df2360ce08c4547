"""What MMEngine's Runner needs; hooks decide when, ``mcf_mm.pruning`` does the work."""

from mcf_mm.engine.bf16_optim_wrapper import Bf16OptimWrapper
from mcf_mm.engine.hooks import (
    AtomicCheckpointHook,
    ClassCountHook,
    EpochSeedHook,
    FiniteLossHook,
    HoldZerosHook,
    MCFPruningHook,
    PruningHook,
    RandomPolicyHook,
    SameRunHook,
    ScoreSearchHook,
    TeacherHook,
)
from mcf_mm.engine.teacher import Teacher

__all__ = [
    'AtomicCheckpointHook',
    'Bf16OptimWrapper',
    'ClassCountHook',
    'EpochSeedHook',
    'FiniteLossHook',
    'HoldZerosHook',
    'MCFPruningHook',
    'PruningHook',
    'RandomPolicyHook',
    'SameRunHook',
    'ScoreSearchHook',
    'Teacher',
    'TeacherHook',
]
