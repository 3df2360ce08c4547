"""A search in PostgreSQL whose server goes away: waited for, ended clearly, nothing lost."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from searcher import NAMES, score_of, search
from test_study import evaluated, lines, wait_until, worker

pytest.importorskip('optuna', reason='the extra search is not installed')
pytest.importorskip('psycopg2', reason='the extra postgres is not installed')


def binaries() -> Path:
    """Folder of initdb and postgres; skips where there is none."""
    found = [Path(path).resolve().parent for path in [shutil.which('initdb')] if path]
    found += sorted(Path('/usr/lib/postgresql').glob('*/bin'), reverse=True)
    for folder in found:
        if (folder / 'initdb').is_file() and (folder / 'postgres').is_file():
            return folder
    pytest.skip('there is no PostgreSQL here: neither initdb nor postgres is found')


class Server:
    """A server of PostgreSQL in a temporary folder, on a port of its own."""

    def __init__(self, folder: str):
        self.folder, self.bin, self.process = folder, binaries(), None
        self.owner = {}
        if os.geteuid() == 0:  # it refuses to run as root
            users = [user for user in pwd.getpwall() if user.pw_name in ('postgres', 'nobody')]
            if not users:
                pytest.skip('PostgreSQL does not run as root, and there is no user postgres')
            user = max(users, key=lambda user: user.pw_name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            self.owner = dict(user=user.pw_uid, group=user.pw_gid, extra_groups=[])
        with socket.create_server(('127.0.0.1', 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f'postgresql://mcf:secret@127.0.0.1:{self.port}/postgres'
        command = [self.bin / 'initdb', '-D', f'{folder}/data', '-A', 'trust', '-U', 'mcf', '-N']
        made = subprocess.run(
            [*command, '-E', 'UTF8', '--locale=C'],
            cwd=folder, capture_output=True, text=True, **self.owner,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    def start(self) -> None:
        settings = dict(fsync='off', listen_addresses='127.0.0.1', port=self.port)
        options = [word for key, value in settings.items() for word in ('-c', f'{key}={value}')]
        with open('/dev/null', 'w') as nowhere:
            self.process = subprocess.Popen(
                [self.bin / 'postgres', '-D', f'{self.folder}/data', '-k', self.folder, *options],
                cwd=self.folder, stdout=nowhere, stderr=nowhere, **self.owner,
            )  # fmt: skip
        wait_until(self.answers, self.process)

    def answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # ends all connections
            self.process.wait(30)
            self.process = None


@pytest.fixture
def server():
    folder = tempfile.mkdtemp(prefix='mcf_mm_pg')
    own = None
    try:
        own = Server(folder)
        own.start()
        yield own
    finally:
        if own is not None:
            own.stop()
        shutil.rmtree(folder, ignore_errors=True)


def started(server, folder, patience: float) -> list:
    options = ('seconds=0.3', 'sampler=random', f'patience={patience}')
    return [worker(server.url, folder, 12, *options) for _ in range(2)]


def test_workers_wait_for_a_server_that_is_gone_for_a_moment(server, tmp_path):
    workers = started(server, tmp_path, 30)
    wait_until(lambda: lines(tmp_path) >= 3)
    server.stop()
    time.sleep(1)
    server.start()
    outputs = [process.communicate(50) for process in workers]
    assert [process.returncode for process in workers] == [0, 0], outputs
    assert all(out.count('answers again') == 1 for out, _ in outputs)
    own = search(server.url, tmp_path, sampler='random', resume=True)
    tried = own.tried()
    assert [one.place for one in tried] == list(range(12)) and own.running() == []
    done = [json.dumps(line['x']) for line in evaluated(tmp_path)]
    assert sorted(done) == sorted(json.dumps(one.x) for one in tried)


def test_a_server_that_is_gone_for_longer_ends_the_search_and_costs_no_trial(server, tmp_path):
    workers = started(server, tmp_path, 2)
    wait_until(lambda: lines(tmp_path) >= 4)
    server.stop()
    outputs = [process.communicate(40) for process in workers]
    where = f'postgresql://mcf:***@127.0.0.1:{server.port}/postgres'
    for process, (out, err) in zip(workers, outputs, strict=True):
        assert process.returncode == 1, err
        assert out.count(f'{where} does not answer, trying for 2 s: ') == 1
        assert f'error: {where} has not answered for 2 s: ' in err
        assert 'secret' not in out + err and 'Traceback' not in err
    pending = [json.loads(path.read_text()) for path in tmp_path.glob('pending_*.json')]
    assert all(kept['score'] == score_of(kept['x']) for kept in pending)

    # Back again: the rest, and no score that was there is asked for again.
    server.start()
    own = search(server.url, tmp_path, sampler='random', resume=True)
    before = own.tried()
    assert {kept['place'] for kept in pending} <= {one.place for one in before}
    assert not list(tmp_path.glob('pending_*.json'))
    seen = lines(tmp_path)
    process = worker(server.url, tmp_path, 12, 'sampler=random')
    out, err = process.communicate(50)
    assert process.returncode == 0 and '12 trials are complete' in out, err
    tried = own.tried()
    assert [one.place for one in tried] == list(range(12)) and own.running() == []
    assert all(one.score == score_of(one.x) and set(one.x) == set(NAMES) for one in tried)
    assert [one for one in tried if one in before] == before
    assert lines(tmp_path) - seen == 12 - len(before)
    # Of what was evaluated, everything is in the study: the same numbers where it was twice.
    asked = {json.dumps(line['x']) for line in evaluated(tmp_path)}
    assert asked == {json.dumps(one.x) for one in tried}
