"""For runs in processes of their own: a hook that tells what happened, one that ends them."""

import os
import resource
import signal
from pathlib import Path

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from mcf_mm.engine import MCFPruningHook, ScoreSearchHook

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """Environment of a child that finds this checkout and this module, and is as fast as can be."""
    path = (str(ROOT), str(Path(__file__).parent), os.environ.get('PYTHONPATH', ''))
    return {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(filter(None, path)),
        **more,
    }


def find_hook(runner, kind):
    return next((hook for hook in runner.hooks if isinstance(hook, kind)), None)


@HOOKS.register_module()
class RecordHook(Hook):
    """Writes ``rank<number>.pt``: the masks after each epoch, and the weights at the end."""

    priority = 'LOWEST'

    def __init__(self):
        self.masks = []

    def after_train_epoch(self, runner):
        hook = find_hook(runner, MCFPruningHook)
        sparse = hook.pruning.sparse if hook else {}
        self.masks.append({name: (ffn.mask1, ffn.mask2) for name, ffn in sparse.items()})

    def after_train(self, runner):
        average = find_hook(runner, EMAHook)
        record = dict(
            masks=self.masks,
            wrapped=is_model_wrapper(runner.model),
            weights=getattr(runner.model, 'module', runner.model).state_dict(),
            average=average.ema_model.module.state_dict() if average else None,
            lr=runner.optim_wrapper.get_lr()['lr'],
        )
        torch.save(record, Path(runner.work_dir) / f'rank{runner.rank}.pt')


@HOOKS.register_module()
class KillHook(Hook):
    """Ends the process for good, at a moment that is given in the environment.

    ``KILL='2 train'`` kills before the second step of epoch 2 (from 0), ``'2 start'`` before its
    first one, ``'2 save'`` in the middle of writing its checkpoint.
    """

    def __init__(self):
        epoch, self.moment = os.environ.get('KILL', '-1 never').split()
        self.epoch = int(epoch)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == self.epoch and self.moment == ('train' if batch_idx else 'start'):
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.epoch == self.epoch and self.moment == 'save':
            # The kernel ends a process that writes more; Python has switched that off.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@HOOKS.register_module()
class KillInHealing(Hook):
    """Ends the process for good in the middle of healing, if ``KILL_IN_HEALING`` is set."""

    def before_train(self, runner):
        if 'KILL_IN_HEALING' in os.environ:
            from mcf_mm.pruning.heal import _Healer

            step = _Healer.step

            def kill(healer, batch):
                if healer.steps == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                step(healer, batch)

            _Healer.step = kill


@HOOKS.register_module()
class RecordScoresHook(Hook):
    """Writes ``scores<rank>.pt``: the scores after each epoch of a search, and the weights."""

    priority = 'LOWEST'

    def __init__(self):
        self.scores = []

    def after_train_epoch(self, runner):
        gates = find_hook(runner, ScoreSearchHook).pruning.gates
        if gates is not None:
            self.scores.append({key: value.detach().clone() for key, value in gates.values.items()})

    def after_train(self, runner):
        average = find_hook(runner, EMAHook)
        record = dict(
            scores=self.scores,
            weights=getattr(runner.model, 'module', runner.model).state_dict(),
            average=average.ema_model.module.state_dict() if average else None,
        )
        torch.save(record, Path(runner.work_dir) / f'scores{runner.rank}.pt')
