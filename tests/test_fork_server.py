"""A forked tool is a process like another one."""

import os
import signal
import subprocess
import time

import pytest
from fork_server import run_ranks, run_tool, start_tool

SEE = """
import os, sys
import mcf_mm, torch
print([sys.argv, os.getcwd(), os.environ.get('A'), 'HOME' in os.environ, __name__])
last = os.environ['PYTHONPATH'].split(os.pathsep)[-1]
print([sys.path[0], last in sys.path, torch.get_num_threads()])
print(os.getpid(), file=sys.stderr)
"""


@pytest.mark.parametrize('bare', [False, True])
def test_what_a_script_sees(tmp_path, bare):
    script = tmp_path / 'see.py'
    script.write_text(SEE)
    path = os.environ.get('PYTHONPATH', str(tmp_path))
    env = dict(PATH=os.environ['PATH'], PYTHONPATH=path, A='1', OMP_NUM_THREADS='2')
    for command, first, folder in (
        ([script, 'x', 3], str(script), str(tmp_path)),
        (['-c', SEE, 'x', 3], '-c', ''),
    ):
        process = start_tool(command, env=env, cwd=tmp_path, bare=bare)
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert int(stderr.splitlines()[-1]) == process.pid != os.getpid()
        see, more = map(eval, stdout.splitlines())
        assert see == [[first, 'x', '3'], str(tmp_path), '1', False, '__main__']
        assert more == [folder, True, 2]


@pytest.mark.parametrize(
    'code, status, said',
    [
        ('pass', 0, ''),
        ('import sys; sys.exit(7)', 7, ''),
        ('import sys; sys.exit("bad")', 1, 'bad'),
        ('1 / 0', 1, 'ZeroDivisionError: division by zero'),
        ('import os; os.kill(os.getpid(), 9)', -signal.SIGKILL, ''),
        ('import atexit; atexit.register(print, "x"); f = open("f", "w"); f.write("y")', 0, ''),
    ],
)
def test_how_it_ends(code, status, said, tmp_path):
    done = run_tool(['-c', code], cwd=tmp_path)
    assert done.returncode == status
    assert (done.stderr.splitlines() or [''])[-1] == said
    if 'atexit' in code:
        assert done.stdout == 'x\n' and (tmp_path / 'f').read_text() == 'y'
    if status:
        with pytest.raises(subprocess.CalledProcessError):
            run_tool(['-c', code], check=True)


def test_it_can_be_killed():
    process = start_tool(['-c', 'import time; print(1, flush=True); time.sleep(60)'])
    while process.output()[0] != '1\n':
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        run_tool(['-c', 'import time; time.sleep(60)'], timeout=0.1)


def test_unseeded_numbers_differ():
    code = 'import random, numpy; print(random.random()); print(numpy.random.rand())'
    first, second = (run_tool(['-c', code], check=True).stdout.splitlines() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1]


def test_ranks_find_each_other_and_end_together():
    code = """
from torch import distributed, ones
distributed.init_process_group('gloo')
sum = ones(1) * (1 + distributed.get_rank())
distributed.all_reduce(sum)
print(int(sum))
"""
    assert [done.stdout for done in run_ranks(['-c', code])] == ['3\n'] * 2
    fails = 'import os, time; os.environ["RANK"] == "1" or time.sleep(60); raise SystemExit(3)'
    assert [done.returncode for done in run_ranks(['-c', fails])] == [-signal.SIGKILL, 3]
