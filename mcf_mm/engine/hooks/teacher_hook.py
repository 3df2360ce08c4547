"""Lets a dense network teach while the model trains."""

import hashlib
import shutil
from pathlib import Path

from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model, unwrapped
from mcf_mm.engine.teacher import Teacher, check_teacher
from mcf_mm.files import whole_file
from mcf_mm.registry import HOOKS
from mcf_mm.weights.checkpoint import load_weights, save_state_dict

FILE = 'teacher.safetensors'


@HOOKS.register_module()
class TeacherHook(Hook):
    """Adds losses that draw the model to a dense network, see :class:`mcf_mm.engine.Teacher`.

    Alone, it teaches from the first epoch on with the weights of ``checkpoint``: for the recovery
    of a network that was pruned before. A pruning hook with ``teacher=dict(...)`` has one of its
    own, which teaches after surgery with the network as it was before pruning.

    Args:
        logits: Weight of the distance of the class scores. Defaults to 1.0.
        blocks: Weight of the distance of the blocks' outputs. Defaults to 0.
        temperature: Of the class scores. Defaults to 1.
        config: Config file of the dense network. A pruning hook's teacher has none.
        checkpoint: Its weights. A pruning hook's teacher has none.

    Raises:
        ValueError: A weight is negative or none is positive; ``config`` or ``checkpoint`` is
            missing; ``logits`` is for a network without classifier.

    Example:
        >>> custom_hooks = [
        ...     dict(type='mcf_mm.TeacherHook', config='dense.py', checkpoint='dense.safetensors')]
    """

    def __init__(
        self,
        logits: float = 1.0,
        blocks: float = 0.0,
        temperature: float = 1.0,
        config: str | None = None,
        checkpoint: str | None = None,
    ):
        check_teacher(logits, blocks, temperature)
        self.weights = dict(logits=logits, blocks=blocks, temperature=temperature)
        self.config, self.checkpoint = config, checkpoint
        # Of the file of a pruning hook's teacher, once it is written.
        self.sha256: str | None = None

    def before_train(self, runner: Runner) -> None:
        """Load the dense network and let it teach."""
        if not self.config or not self.checkpoint:
            raise ValueError(
                'TeacherHook needs the config and the checkpoint of the dense network, got '
                f'config={self.config!r} and checkpoint={self.checkpoint!r}'
            )
        dense = build_model(load_config(self.config))
        load_weights(dense, self.checkpoint)
        self._attach(runner, dense.to(next(unwrapped(runner).parameters()).device))

    def check(self, model: nn.Module) -> None:
        """Check that the losses can be taken of a network, before training starts."""
        Teacher.check_model(model, **self.weights)

    def remember(self, runner: Runner) -> None:
        """Keep the network as it is in a file, for ``--resume`` starts from a pruned one."""
        path = Path(runner.work_dir) / FILE
        if runner.rank == 0:
            save_state_dict(path, unwrapped(runner).state_dict(), {'origin': 'teacher'})
        barrier()
        self.sha256 = _sha256(path)

    def recall(self, runner: Runner) -> None:
        """Find the network that was remembered, before a resumed run starts.

        Raises:
            FileNotFoundError: Its file is neither in the work directory nor beside the checkpoint
                that the run goes on from; what is there is the teacher of another run.
        """
        own = Path(runner.work_dir) / FILE
        there = [own, Path(str(runner._load_from or '')).parent / FILE]
        files = [path for path in there if path.is_file()]
        path = next((path for path in files if self.sha256 in (None, _sha256(path))), None)
        if path is None:
            told = f'{files[0]} is damaged or of another run' if files else f'no {own}'
            raise FileNotFoundError(f'{told}: the teacher of the run that is resumed is missing')
        barrier()
        if runner.rank == 0 and path != own:
            with whole_file(own) as partial:
                shutil.copy(path, partial)
        barrier()

    def network(self, runner: Runner) -> nn.Module:
        """The network that was remembered, on the device of the run's model."""
        dense = build_model(runner.cfg)
        load_weights(dense, str(Path(runner.work_dir) / FILE))
        return dense.to(next(unwrapped(runner).parameters()).device)

    def attach(self, runner: Runner) -> None:
        """Let the network that was remembered teach from now on."""
        self._attach(runner, self.network(runner))

    def _attach(self, runner: Runner, dense: nn.Module) -> None:
        self.teacher = Teacher(dense, **self.weights)
        self.teacher.attach(unwrapped(runner))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
