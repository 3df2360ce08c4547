from mcf_mm.engine.hooks.mcf_pruning_hook import MCFPruningHook

__all__ = ['MCFPruningHook']
