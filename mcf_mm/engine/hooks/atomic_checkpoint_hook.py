"""Checkpoints that a crash cannot damage."""

import os
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mcf_mm.engine.networks import unwrapped
from mcf_mm.registry import HOOKS

BACKEND = 'mcf_mm_atomic'


class AtomicBackend(LocalBackend):
    """Local files that appear whole or not at all; MMEngine's backend writes in place."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj`` beside ``filepath`` and renames the file when it is whole."""
        # Always the same name: what a crash has left is overwritten by the next attempt.
        partial = f'{filepath}.part'
        super().put(obj, partial)
        os.replace(partial, filepath)


register_backend(BACKEND, AtomicBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, except that a crash at any moment leaves the last checkpoint.

    A file is written under a temporary name and renamed, and with ``max_keep_ckpts`` the oldest
    one is removed after the new one is there, not before. ``tools/train.py`` takes this hook
    where the config has MMEngine's. Checkpoints that go to a remote store are written as ever.

    Weights that are NaN or infinite are not written: the last good checkpoint stays the newest.

    Raises:
        FloatingPointError: Weights are NaN or infinite when a checkpoint is due.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        remote = self.out_dir is not None and '://' in str(self.out_dir)
        if self.backend_args is None and self.file_client_args is None and not remote:
            self.backend_args = dict(backend=BACKEND)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuses broken weights; of an average those are what EMAHook has put here by now.

        They are in main memory already: one pass over them, a small part of what writing takes.
        """
        parameters = dict(unwrapped(runner).named_parameters())
        # EMAHook writes the average and, under the other key, what was averaged.
        broken = [
            name
            for key in ('state_dict', 'ema_state_dict')
            for name, value in checkpoint.get(key, {}).items()
            # A buffer may be an attention mask, with infinity on purpose.
            if not (value.isfinite() if name in parameters else ~value.isnan()).all()
        ]
        if broken:
            raise FloatingPointError(
                f'epoch {runner.epoch + 1}, iteration {runner.iter}: {len(broken)} of the weights '
                f'are NaN or infinite ({", ".join(broken[:3])}, ...); no checkpoint is written. '
                f'Go on from an earlier one in {self.out_dir} with a lower learning rate'
            )

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and len(self.keep_ckpt_ids) == self.max_keep_ckpts:
            if self.keep_ckpt_ids[-1] != step:
                outdated = self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if outdated is not None and is_main_process():
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
