"""The server of ``fork_server.py`` and what its children do; it runs this file as a script."""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path

#: What the server imports: the seconds of a tool. None of it may start a thread (onnxruntime
#: does), for threads do not survive a fork.
PRELOAD = (
    'mcf_mm',  # first: it lets the others be imported
    'mmengine.runner',
    'mmcv.ops',
    'mmdet.apis',
    'mmdet.datasets',
    'mmdet.evaluation',
    'mmdet.models',
    'mmpretrain.apis',
    'mmpretrain.datasets',
    'mmpretrain.evaluation',
    'mmpretrain.models',
    'matplotlib.figure',
    'rich.console',
    'timm',
    'torch.utils.tensorboard',
)


def serve(requests: socket.socket) -> dict:
    """Forks for each request; returns it in the child, and never in the server."""
    while True:
        data, files, _, _ = socket.recv_fds(requests, 1, 4)
        if not data:
            os._exit(0)
        message, status, *outputs = files
        # A process between, whose child it is, so that nothing here has to wait for anybody.
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            pid = os.fork()
            if pid == 0:
                os.close(status)
                size = os.fstat(message).st_size
                request = json.loads(os.pread(message, size, 0))
                os.close(message)
                for file, standard in zip(outputs, (1, 2), strict=True):
                    os.dup2(file, standard)
                    os.close(file)
                return request
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.write(status, f'{pid}\n'.encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, f'{code}\n'.encode())
            os._exit(0)
        for file in files:
            os.close(file)


def become(command: list[str], env: dict[str, str], cwd: str, path: list[str]) -> None:
    """Runs the command in this process as ``python`` would; ``path`` is that of the libraries."""
    import numpy
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # As in a new process: unseeded numbers are not to be the same in each child. Python's own are
    # seeded after a fork, torch starts with the same seed always.
    numpy.random.seed()
    torch.set_num_threads(int(env.get('OMP_NUM_THREADS') or 1))
    first, *arguments = command
    script = first not in ('-c', '-m')
    sys.argv = [first, *arguments[0 if script else 1 :]]
    start = str(Path(first).resolve().parent) if script else cwd if first == '-m' else ''
    sys.path[:] = [start, *filter(None, env.get('PYTHONPATH', '').split(os.pathsep)), *path]
    if script:
        runpy.run_path(first, run_name='__main__')
    elif first == '-m':
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    else:
        main = type(sys)('__main__')
        sys.modules['__main__'] = main
        exec(compile(arguments[0], '<string>', 'exec'), main.__dict__)


def main() -> None:
    import importlib

    for name in PRELOAD:
        # What an environment has not, a child that needs it will miss and say so.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    threads = Path('/proc/self/task')
    if threads.is_dir() and len(list(threads.iterdir())) > 1:
        raise RuntimeError('an import has started threads, which a fork would lose')
    # Else each child would walk through all of this, and copy it.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes between
    mine = [str(Path(__file__).parent), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    path = [folder for folder in sys.path if folder not in mine]
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        become(**request, path=path)
        code = 0
    except SystemExit as error:
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    # What Python does at its end, but for taking down a gigabyte of modules.
    threading._shutdown()
    atexit._run_exitfuncs()
    if (script := vars(sys.modules['__main__'])) is not globals():
        script.clear()  # closes its files
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == '__main__':
    main()
