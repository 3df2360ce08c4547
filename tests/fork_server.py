"""Runs tools and scripts in processes of their own, without the seconds that imports take.

torch, mmcv, mmdet and mmpretrain take 7 to 20 seconds to import, which is most of what a test of
a tool would take. A server imports them once for each pytest process and forks a child for each
request. The child is a real process: own pid and exit status, ended by signals, with the
arguments, environment and folder that were asked for, and the end that Python gives a script.

    done = run_tool([ROOT / 'tools' / 'train.py', config])     # as subprocess.run
    process = start_tool(['-c', code, 'argument'])             # as subprocess.Popen
    all_done = run_ranks([ROOT / 'tools' / 'train.py', config, '--launcher', 'pytorch'])

Not covered, for which there is ``run_tool(..., bare=True)``, a new interpreter:

- whether a script imports what it needs: OpenMMLab is there already, and what it registers
  (``mcf_mm`` is not, but for its top module, which imports no OpenMMLab);
- that modules are taken down at the end (threads are joined, ``atexit`` runs, files are flushed);
- what is read when Python or torch start: ``PYTHONHASHSEED`` (all children order sets alike),
  ``PYTHONUNBUFFERED`` and so on. ``PYTHONPATH`` and ``OMP_NUM_THREADS`` are followed.

Everything is bare with ``MCF_MM_TESTS_BARE=1`` and where there is a GPU, which a forked process
could not use.
"""

import array
import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CHILDREN = str(Path(__file__).with_name('fork_children.py'))


def run_tool(
    command: Sequence,
    *,
    env: dict[str, str] | None = None,
    cwd: str | Path | None = None,
    check: bool = False,
    timeout: float | None = None,
    bare: bool = False,
) -> subprocess.CompletedProcess:
    """Runs ``command`` to its end, like ``subprocess.run`` with the output captured as text.

    Args:
        command: What would follow ``python``: ``[script, *arguments]``, ``['-c', code, ...]`` or
            ``['-m', module, ...]``.
        env: The whole environment. Defaults to that of the test.
        cwd: Defaults to the folder of the test.
        check: Raise ``CalledProcessError`` unless the exit status is 0.
        timeout: Seconds after which the process is killed and ``TimeoutExpired`` raised.
        bare: Use a new interpreter.
    """
    process = start_tool(command, env=env, cwd=cwd, bare=bare)
    try:
        stdout, stderr = process.communicate(timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def run_ranks(
    command: Sequence, ranks: int = 2, *, timeout: float = 300, **settings
) -> list[subprocess.CompletedProcess]:
    """Runs ``command`` in processes that find each other as those of ``torchrun`` do.

    When one fails, the others are killed: they would wait for it.
    """
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    env = dict(settings.pop('env', None) or os.environ)
    env.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    env.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    processes = [
        start_tool(command, env=dict(env, RANK=str(rank), LOCAL_RANK=str(rank)), **settings)
        for rank in range(ranks)
    ]
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            break
        time.sleep(0.02)
    late = time.monotonic() >= end
    for process in processes:
        process.kill()
    outputs = [process.communicate() for process in processes]
    if late:
        raise subprocess.TimeoutExpired(processes[0].args, timeout, *outputs[0])
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def start_tool(
    command: Sequence,
    *,
    env: dict[str, str] | None = None,
    cwd: str | Path | None = None,
    bare: bool = False,
) -> 'Process':
    """Starts ``command`` and does not wait; see :func:`run_tool`."""
    env = {**(os.environ if env is None else env)}
    return Process([*map(str, command)], env, str(cwd or os.getcwd()), bare or always_bare())


def always_bare() -> bool:
    import torch

    return os.environ.get('MCF_MM_TESTS_BARE', '0') != '0' or torch.cuda.is_available()


class Process:
    """What tests need of ``subprocess.Popen``; the output goes to files, so it never blocks."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: str, bare: bool):
        self.args = [sys.executable, *command]
        self.returncode = None
        self._files = [tempfile.TemporaryFile('w+b') for _ in range(2)]
        self._bare = self._status = None
        if bare:
            stdout, stderr = self._files
            self._bare = subprocess.Popen(
                self.args, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
            self.pid = self._bare.pid
            return
        self._status = server().request(
            dict(command=command, env=env, cwd=cwd), [file.fileno() for file in self._files]
        )
        self.pid = int(self._status.readline() or self._lost())

    def _lost(self):
        raise RuntimeError(f'the fork server lost {self.args}: {server().errors()}')

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout, *self.output())
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        if self._bare:
            try:
                self.returncode = self._bare.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
        elif select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline() or self._lost())
            self._status.close()
        return self.returncode

    def output(self) -> tuple[str, str]:
        """What standard output and error have got so far."""
        texts = []
        for file in self._files:
            # Not by seek: the position is shared with the process.
            size = os.fstat(file.fileno()).st_size
            texts.append(os.pread(file.fileno(), size, 0).decode())
        return tuple(texts)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.output()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The server as the tests see it. It ends when this process does, or closes its socket."""

    def __init__(self):
        self.owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile('w+b')
        self.process = subprocess.Popen(
            [sys.executable, CHILDREN, str(theirs.fileno())],
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )
        theirs.close()
        atexit.register(self.stop)

    def stop(self) -> None:
        if self.owner == os.getpid():
            self._socket.close()
            self.process.wait()

    def request(self, message: dict, files: list[int]):
        """Has a child started; returns a stream of its pid and, in time, its exit status."""
        status, theirs = os.pipe()
        with tempfile.TemporaryFile('w+b') as file:
            file.write(json.dumps(message).encode())
            file.flush()
            try:
                rights = array.array('i', [file.fileno(), theirs, *files])
                self._socket.sendmsg(
                    [b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
                )
            except OSError as error:
                raise RuntimeError(f'the fork server is gone: {self.errors()}') from error
            finally:
                os.close(theirs)
        # Unbuffered, so that select tells the truth.
        return open(status, 'rb', buffering=0)

    def errors(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode()


_server = None


def server() -> Server:
    """The server of this process, started when it is first needed."""
    global _server
    if _server is None or _server.owner != os.getpid():
        _server = Server()
    return _server
