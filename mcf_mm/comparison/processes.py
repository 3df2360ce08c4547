"""Work in a process of its own: clean seconds and memory, and a crash that others survive."""

import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

#: Seconds between two looks at whether the parent is alive.
BEAT = 0.5
#: How far above what is in memory a peak may be that has just begun anew, in bytes.
RESET_SLACK = 2**25
#: What a parent need not see the traceback of: the message says it all.
TOLD = (ValueError, OSError, ImportError)


class Crashed(RuntimeError):
    """The work failed otherwise than by bad input; the log has the traceback."""


def in_own_process(
    function: Callable[..., Any],
    arguments: tuple,
    log: Path,
    told: Callable[[str, int, int], None],
) -> Any:
    """Run a function in a process of its own and wait for it.

    Args:
        function: One at the top of a module. It gets ``arguments`` and a function that tells its
            progress.
        arguments: What can be pickled.
        log: What the function prints goes to the end of this file.
        told: Called with what is being done, how much is done and how much there is.

    Returns:
        What the function returns.

    Raises:
        ValueError: The function did, or it raised an error of the system or of an import.
        Crashed: It raised anything else, or its process was ended.
    """
    context = get_context(_start_method())
    if context.get_start_method() == 'forkserver':
        context.set_forkserver_preload(['mcf_mm.comparison.stages'])
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, arguments, log, theirs))
    sys.stdout.flush()  # or a forked child would write it as well
    process.start()
    theirs.close()
    kind, content = 'ended', None
    try:
        while True:
            if ours.poll(BEAT):
                kind, content = ours.recv()
            else:
                kind, content = 'told', ('', 0, 0)
            if kind != 'told':
                break
            told(*content)
    except EOFError:
        kind = 'ended'
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        ours.close()
    if kind == 'done':
        return content
    if kind == 'refused':
        raise ValueError(content)
    if kind == 'failed':
        raise Crashed(f'{content} (traceback in {log})')
    code = process.exitcode
    if code < 0:
        name = signal.Signals(-code).name
        memory = ', as happens where memory runs out' if name == 'SIGKILL' else ''
        raise Crashed(f'its process was ended by {name}{memory} (log: {log})')
    raise Crashed(f'its process ended with status {code} and no result (log: {log})')


def _start_method() -> str:
    """A fork costs no imports, but does not go with a GPU or with threads."""
    if torch.cuda.is_available() or not Path('/proc/self/task').is_dir():
        return 'spawn'
    return 'fork' if len(os.listdir('/proc/self/task')) == 1 else 'forkserver'


def _run(function: Callable[..., Any], arguments: tuple, log: Path, pipe: Connection) -> None:
    """In the child: run, and send what came out."""
    with open(log, 'a', encoding='utf-8') as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of a progress bar
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    latest = 0.0

    def told(name: str, done: int, number: int) -> None:
        nonlocal latest
        if time.monotonic() - latest > BEAT / 2:
            latest = time.monotonic()
            pipe.send(('told', (name, done, number)))

    try:
        warnings.simplefilter('default')
        result = 'done', function(*arguments, told)
    except TOLD as error:
        traceback.print_exc()
        result = 'refused', f'{error}'
    except Exception as error:
        traceback.print_exc()
        result = 'failed', f'{type(error).__name__}: {error}'
    sys.stdout.flush()
    pipe.send(result)


def _end_with(parent: int) -> None:
    """End this process when the one that wants its result is gone."""
    while os.getppid() == parent:
        time.sleep(BEAT)
    os._exit(1)


def forget_peaks() -> bool:
    """Let the peaks of memory begin anew.

    Returns:
        Whether the system did so for this process: some containers forbid it, and then
        :func:`resident_peak` still tells of all that came before.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    # What the kernel did is looked at: one that ignores the request reports no error.
    now = _resident('VmRSS')
    return now is not None and resident_peak() - now < RESET_SLACK


def resident_peak() -> int:
    """Most bytes that this process has had in memory at once, libraries included."""
    # Not getrusage where it can be helped: after exec it still tells of the parent.
    peak = _resident('VmHWM')
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else 1024 * peak
    return peak


def _resident(field: str) -> int | None:
    """Bytes in a row of /proc/self/status; None where the system has no such row."""
    status = Path('/proc/self/status')
    rows = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(row.split()[1]) for row in rows if row.startswith(field)), None)


def device_peak() -> int | None:
    """Most bytes of tensors on the GPU at once; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
