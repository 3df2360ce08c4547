"""The main job on the digits: which steps there are, and what is complete.

``tools/demo/main.py`` runs the steps, ``outcome.py`` says what came out; this module knows nothing
of processes or arguments.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mcf_mm.files import write_json

MARKER = 'demo.json'
#: As many parameters as MCF leaves at p = 0.4; a test counts them.
ONE_SHOT_BUDGET = 'params=145734'


@dataclass(frozen=True)
class Step:
    """One run of a tool.

    Args:
        name: Its files are in ``work_dirs/<name>``.
        title: What it does, for the user.
        network: What comes out: a row of the table and its column.
        result: File that it leaves in its folder at the end.
        after: Steps whose results it starts from.
        config: Stem of its config. Defaults to the name.
        prune: Options of ``tools/prune.py``, which prunes the result of the step before. None: it
            is trained.
    """

    name: str
    title: str
    network: tuple[str, str]
    result: str
    after: tuple[str, ...] = ()
    config: str = ''
    prune: tuple[str, ...] | None = None

    @property
    def work_dir(self) -> Path:
        """Folder of its logs and checkpoints."""
        return Path('work_dirs') / self.name

    @property
    def config_file(self) -> str:
        """Its config, seen from the top folder of the checkout."""
        return f'configs/demo/{self.config or self.name}.py'


DENSE = Step('deit-micro_digits', 'train the classifier', ('classifier', 'dense'), 'epoch_12.pth')
ONE_SHOT = Step(
    'one-shot_deit-micro_digits',
    'prune it in one shot, without training',
    ('classifier', 'one shot'),
    'slim.safetensors',
    (DENSE.name,),
    config=DENSE.name,
    prune=('--budget', ONE_SHOT_BUDGET),
)
MCF = Step(
    'mcf_deit-micro_digits',
    'prune it by MCF in a training run and recover',
    ('classifier', 'MCF'),
    'slim.safetensors',
    (DENSE.name,),
)
YOLOS = Step(
    'yolos_deit-micro_digits',
    'train the detector on the dense backbone',
    ('detector', 'dense'),
    'epoch_5.pth',
    # It does not need the second, but two cores have enough to do.
    (DENSE.name, ONE_SHOT.name),
)
YOLOS_MCF = Step(
    'yolos_mcf-deit-micro_digits',
    'train the detector on the backbone pruned by MCF',
    ('detector', 'MCF'),
    'epoch_5.pth',
    (MCF.name,),
)
STEPS = (DENSE, ONE_SHOT, MCF, YOLOS, YOLOS_MCF)


def fingerprint(configs: Mapping[str, Config], name: str, data: str) -> str:
    """What a step's result depends on: its config, the steps before it and the data.

    Args:
        configs: Configs of all steps by name.
        name: The step.
        data: What identifies the data set.
    """
    step = next(step for step in STEPS if step.name == name)
    settings = [configs[name].to_dict(), step.prune]
    parts = [json.dumps(settings, sort_keys=True, default=str), data]
    parts += [fingerprint(configs, before, data) for before in step.after]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def command(step: Step) -> list[str]:
    """What runs a step: a script of ``tools/`` and its arguments, without ``--resume``."""
    if step.prune is None:
        return ['tools/train.py', step.config_file]
    before = next(other for other in STEPS if other.name == step.after[0])
    checkpoint = before.work_dir / before.result
    places = [step.config_file, str(checkpoint), '--out', str(step.work_dir)]
    return ['tools/prune.py', *places, *step.prune]


def is_done(step: Step, wanted: str) -> bool:
    """Whether the step has run to its end with this fingerprint."""
    marker = read_json(step.work_dir / MARKER)
    whole = (step.work_dir / step.result).is_file()
    return whole and marker == dict(fingerprint=wanted, done=True)


def begin(step: Step, wanted: str) -> bool:
    """Makes the step's folder ready.

    What another configuration left there is removed; an interrupted run of this one is kept.

    Args:
        step: The step.
        wanted: Its fingerprint.

    Returns:
        Whether there is a checkpoint to go on from.

    Raises:
        FileExistsError: The folder holds something that is not from the demo.
    """
    marker = read_json(step.work_dir / MARKER)
    if marker is None and step.work_dir.exists() and any(step.work_dir.iterdir()):
        raise FileExistsError(
            f'{step.work_dir} exists and is not from the demo: move or remove it first'
        )
    if marker is not None and marker['fingerprint'] != wanted:
        shutil.rmtree(step.work_dir)
    step.work_dir.mkdir(parents=True, exist_ok=True)
    write_json(step.work_dir / MARKER, dict(fingerprint=wanted, done=False))
    return (step.work_dir / 'last_checkpoint').is_file()


def finish(step: Step, wanted: str) -> None:
    """Notes that the step has run to its end.

    Raises:
        FileNotFoundError: It did not leave its result.
    """
    if not (step.work_dir / step.result).is_file():
        raise FileNotFoundError(f'{step.title}: it left no {step.work_dir / step.result}')
    write_json(step.work_dir / MARKER, dict(fingerprint=wanted, done=True))


def read_json(path: Path) -> dict | None:
    """Content of a JSON file, None when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
