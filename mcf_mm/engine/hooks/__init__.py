from mcf_mm.engine.hooks.atomic_checkpoint_hook import AtomicCheckpointHook
from mcf_mm.engine.hooks.class_count_hook import ClassCountHook
from mcf_mm.engine.hooks.epoch_seed_hook import EpochSeedHook
from mcf_mm.engine.hooks.finite_loss_hook import FiniteLossHook
from mcf_mm.engine.hooks.hold_zeros_hook import HoldZerosHook
from mcf_mm.engine.hooks.mcf_pruning_hook import MCFPruningHook
from mcf_mm.engine.hooks.pruning_hook import PruningHook
from mcf_mm.engine.hooks.random_policy_hook import RandomPolicyHook
from mcf_mm.engine.hooks.same_run_hook import SameRunHook
from mcf_mm.engine.hooks.score_search_hook import ScoreSearchHook
from mcf_mm.engine.hooks.teacher_hook import TeacherHook

__all__ = [
    'AtomicCheckpointHook',
    'ClassCountHook',
    'EpochSeedHook',
    'FiniteLossHook',
    'HoldZerosHook',
    'MCFPruningHook',
    'PruningHook',
    'RandomPolicyHook',
    'SameRunHook',
    'ScoreSearchHook',
    'TeacherHook',
]
