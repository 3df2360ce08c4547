"""What MMEngine's Runner needs; hooks decide when, ``mcf_mm.pruning`` does the work."""

from mcf_mm.engine.hooks import (
    AtomicCheckpointHook,
    ClassCountHook,
    EpochSeedHook,
    FiniteLossHook,
    MCFPruningHook,
)

__all__ = [
    'AtomicCheckpointHook',
    'ClassCountHook',
    'EpochSeedHook',
    'FiniteLossHook',
    'MCFPruningHook',
]
