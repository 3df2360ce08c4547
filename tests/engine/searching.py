"""For tests of searches by scores: what is called at moments of a run."""

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recording import find_hook

from mcf_mm.engine import ScoreSearchHook

KINDS = ['qk', 'v', 'hidden']
#: Searches 2 of 4 epochs.
HOOK = dict(type='mcf_mm.ScoreSearchHook', ratio=0.4, search_epochs=2, l1=1e-3, lr_mult=20.0)


def searched(cfg: Config) -> Config:
    """A config that searches, four epochs of three steps each."""
    cfg.custom_hooks = [dict(HOOK, num_images=10)]
    cfg.train_cfg.max_epochs = 4
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    return cfg


class At(Hook):
    """Calls ``look(runner, pruning)`` at a moment."""

    def __init__(self, moment: str, look):
        def call(runner, *args, **kwargs):
            look(runner, find_hook(runner, ScoreSearchHook).pruning)

        setattr(self, moment, call)


def train(cfg: Config, *looks: tuple) -> Runner:
    """Runs a config; ``looks`` are moments, what is called then, and priorities."""
    runner = Runner.from_cfg(cfg)
    for moment, look, priority in looks:
        runner.register_hook(At(moment, look), priority)
    runner.train()
    return runner


def copied(values) -> dict:
    return {key: value.detach().clone() for key, value in values.items()}


def groups_of(runner) -> list[dict]:
    return runner.optim_wrapper.optimizer.param_groups
