"""Processes that work on a search: what they are called, and whether they are still there."""

import os
import socket
from pathlib import Path


def this_worker() -> str:
    """``host:pid:start`` of this process; the start tells it from a later one of the same pid."""
    return f'{socket.gethostname()}:{os.getpid()}:{_start(os.getpid())}'


def is_dead(worker: str) -> bool:
    """Whether a worker of this host is gone; of other hosts nothing is known here: False."""
    host, pid, start = worker.rsplit(':', 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's, but there
    return _start(int(pid)) != start


def _start(pid: int) -> str:
    """When a process began, in ticks since the machine did; ``'-'`` where it cannot be read.

    A process that has ended and that nobody has waited for counts as gone.
    """
    try:
        text = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return '-'
    fields = text.rpartition(')')[2].split()  # a name may have spaces and brackets
    return '-' if fields[0] in 'ZX' else fields[19]
