"""The comparison itself: row by row, stage by stage, what is there is not done again."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

import mcf_mm
from mcf_mm.comparison.processes import Crashed, in_own_process
from mcf_mm.comparison.results import markdown, write
from mcf_mm.comparison.rows import methods, why_not_healed
from mcf_mm.comparison.stages import plan, run_stage
from mcf_mm.comparison.task import Task
from mcf_mm.engine.config import read_config
from mcf_mm.pruning.structure import check_seed, check_whole

#: What is known once the networks are built and the images counted.
FOUND = ('counts', 'notes', 'what', 'wanted', 'dense')
#: Facts that may come to a comparison later; the others make it another one.
LATER = ('heal', 'epochs', 'trials')


def compare(task: Task, rows: Sequence[str] = (), resume: bool = False) -> dict[str, Any]:
    """Compare methods at equal cost; results go to ``results.json`` and ``table.md`` as they come.

    Each stage of a row (pruning, speed, healing, training) runs in a process of its own, so that
    seconds and memory are those of the row alone and a crash costs that row only.

    Args:
        task: What is compared.
        rows: Regular expressions of rows, see :func:`mcf_mm.comparison.rows.methods`. Defaults to
            all. The dense network is always a row.
        resume: Go on with the comparison in the folder. Defaults to False.

    Returns:
        ``facts``; ``rows`` by name, each with its stages; ``left_out`` and ``failed``, reasons by
        name.

    Raises:
        ValueError: An argument is out of range, a pattern names no row or none that can be had,
            the folder has another comparison, or images to report on are used otherwise.
    """
    chosen = choose(rows)
    check_whole('images', task.images, 1)
    check_seed(task.seed)
    for name in ('batch', 'rounds', *(name for name in ('epochs', 'trials') if asked(task, name))):
        check_whole(name, getattr(task, name), 1)
    out = Path(task.out)
    results = _opened(task, out, resume)
    console = Console(stderr=True)
    columns = '{task.description}', BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # Refreshed by hand: a thread would stand in the way of forks.
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        shown = bar.add_task('checking', total=None)

        def told(name: str, done: int, number: int) -> None:
            if name:
                where = f' {done}/{number}' if number > 1 else ''
                bar.update(shown, description=f'{name}{where}')
            bar.refresh()

        names = [name for name in methods() if name in {*chosen, 'dense'}]
        planned = in_own_process(plan, (task, names), out / 'log.txt', told)
        _check_some(rows, planned['left_out'])
        results['facts'] |= {key: planned[key] for key in FOUND}
        results['left_out'] = planned['left_out']
        work = [
            (name, stage)
            for name in names
            if name not in planned['left_out']
            for stage in stages(task, name)
        ]
        for name in names:
            if (reason := planned['left_out'].get(name)) is not None:
                console.print(f'left out: {name}: {reason}', markup=False, soft_wrap=True)
        for line in (counts(results['facts']), *planned['notes']):
            console.print(line, markup=False, soft_wrap=True)
        bar.update(shown, total=len(work), completed=0)
        results['failed'] = {}
        for number, (name, stage) in enumerate(work):
            bar.update(shown, completed=number, description=f'{name}: {stage}')
            row = results['rows'].get(name, {})
            if name in results['failed'] or stage in row:
                continue
            folder = out / 'rows' / re.sub(r'\W+', '_', name)
            arguments = (task, stage, name, folder)
            try:
                found = in_own_process(run_stage, arguments, folder / 'log.txt', told)
            except (ValueError, Crashed) as error:
                results['failed'][name] = f'{stage}: {error}'
                console.print(f'failed: {name}: {stage}: {error}', markup=False, soft_wrap=True)
            else:
                results['rows'].setdefault(name, {})[stage] = found
                console.print(f'{name}: {stage}: {found}', markup=False, soft_wrap=True)
            write(out, results)
        bar.update(shown, completed=len(work), description='done')
    write(out, results, draw=True)
    print(markdown(results))
    print(f'wrote {out / "results.json"}, table.md and accuracy.png')
    return results


def stages(task: Task, name: str) -> list[str]:
    """The stages of a row, in their order."""
    row = methods()[name]
    if row.how == 'scores':
        return ['trained', 'speed']
    found = [*(['ratio'] if row.how == 'peer' else []), 'one_shot', 'speed']
    if task.heal is not None and why_not_healed(row) is None:
        found.append('healed')
    return [*found, 'trained'] if task.epochs is not None else found


def choose(patterns: Sequence[str]) -> list[str]:
    """Names of the rows that patterns ask for, all without any.

    Raises:
        ValueError: A pattern is none or finds nothing.
    """
    known = list(methods())
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            found = [name for name in known if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f'--rows {pattern!r} is no regular expression: {error}') from None
        if not found:
            raise ValueError(f'--rows {pattern!r} names no row; there are: {"; ".join(known)}')
        chosen |= set(found)
    return [name for name in known if name in chosen] if patterns else known


def counts(facts: dict[str, Any]) -> str:
    """How many images are used for what."""
    images = facts['counts']
    training = f', {images["training"]} to train on' if 'training' in images else ''
    return (
        f'{images["calibration"]} images to calibrate on{training} (training set), '
        f'{images["report"]} to report on (test set), none in both'
    )


def asked(task: Task, name: str) -> bool:
    """Whether an optional part of a comparison is asked for."""
    return getattr(task, name) is not None


def _check_some(patterns: Sequence[str], left_out: dict[str, str]) -> None:
    """Check that each pattern, or the whole, has a row beside the dense network."""
    for pattern in patterns or ('',):
        found = [name for name in choose([pattern]) if name != 'dense' or pattern]
        if all(name in left_out for name in found):
            told = f' --rows {pattern!r}' if pattern else ''
            raise ValueError(f'no row of{told or " all"} can be had: {left_out[found[0]]}')


def _opened(task: Task, out: Path, resume: bool) -> dict[str, Any]:
    """The results in a folder, or new ones.

    Raises:
        ValueError: The folder has results and ``resume`` is not given, or of another comparison.
    """
    file, facts = out / 'results.json', _facts(task)
    if not file.is_file():
        return {'facts': facts, 'rows': {}, 'left_out': {}, 'failed': {}}
    if not resume:
        raise ValueError(f'{file} is there: go on with --resume, or name another folder')
    results = json.loads(file.read_text(encoding='utf-8'))
    before = results['facts']
    for key, value in facts.items():
        if key in LATER and (before[key] is None or value is None):
            facts[key] = before[key] if value is None else value
        elif before[key] != value:
            raise ValueError(
                f'{file} is of another comparison: its {key} is {before[key]!r}, here it is '
                f'{value!r}; name another folder'
            )
    results['facts'] |= facts
    return results


def _facts(task: Task) -> dict[str, Any]:
    """What the results depend on, as JSON has it.

    Raises:
        FileNotFoundError: Config or checkpoint is not there.
    """
    cfg = read_config(task.config, task.options)
    if not Path(task.checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint {task.checkpoint}')
    text = json.dumps(cfg.to_dict(), default=str, sort_keys=True)
    device = 'CPU'
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    facts = asdict(task) | {
        'config_sha256': hashlib.sha256(text.encode()).hexdigest(),
        'checkpoint_sha256': hashlib.sha256(Path(task.checkpoint).read_bytes()).hexdigest(),
        'device': f'{device}, {torch.get_num_threads()} thread(s), float32',
        'versions': {'mcf_mm': mcf_mm.__version__, 'torch': torch.__version__},
    }
    del facts['out']
    return json.loads(json.dumps(facts, default=str))
