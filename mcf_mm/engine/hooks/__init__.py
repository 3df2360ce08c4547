from mcf_mm.engine.hooks.atomic_checkpoint_hook import AtomicCheckpointHook
from mcf_mm.engine.hooks.class_count_hook import ClassCountHook
from mcf_mm.engine.hooks.epoch_seed_hook import EpochSeedHook
from mcf_mm.engine.hooks.finite_loss_hook import FiniteLossHook
from mcf_mm.engine.hooks.mcf_pruning_hook import MCFPruningHook

__all__ = [
    'AtomicCheckpointHook',
    'ClassCountHook',
    'EpochSeedHook',
    'FiniteLossHook',
    'MCFPruningHook',
]
