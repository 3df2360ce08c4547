"""A search goes on after any interruption as if there had been none, and workers share it."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from fork_server import start_tool
from searcher import NAMES, evaluate, score_of, search

optuna = pytest.importorskip('optuna', reason='the extra search is not installed')

from mcf_mm.search.samplers import build_sampler, check_sampler  # noqa: E402
from mcf_mm.search.storage import (  # noqa: E402
    Patience,
    StorageLost,
    default_storage,
    hidden,
    open_storage,
)
from mcf_mm.search.study import best_of  # noqa: E402
from mcf_mm.search.workers import is_dead, this_worker  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def url_in(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return default_storage(folder)


def ran(folder: Path, trials: int, **settings):
    own = search(url_in(folder), folder, **settings)
    return own.run(trials, evaluate(folder))


def evaluated(folder: Path) -> list[dict]:
    lines = (folder / 'evaluated.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def worker(url: str, folder: Path, trials: int, *settings):
    paths = (ROOT, ROOT / 'tests' / 'search')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths)), 'OMP_NUM_THREADS': '1'}
    script = ROOT / 'tests' / 'search' / 'searcher.py'
    return start_tool([script, url, folder, trials, *settings], env=env)


def wait_until(condition, process=None, seconds: float = 50) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.02)


def lines(folder: Path) -> int:
    path = folder / 'evaluated.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize('sampler', ['gp', 'tpe'])
def test_same_seed_same_trials_whether_or_not_it_was_interrupted(tmp_path, sampler):
    whole = ran(tmp_path / 'whole', 13, sampler=sampler, seed=3)
    assert [one.place for one in whole] == list(range(13))
    assert all(set(one.x) == set(NAMES) and one.score == score_of(one.x) for one in whole)
    assert set(whole[0].x.values()) == {0.5}
    assert len({str(one.x) for one in whole}) == 13
    # In three parts, the second of which ends in the middle of a trial.
    parts = tmp_path / 'parts'
    assert ran(parts, 5, sampler=sampler, seed=3) == whole[:5]

    def interrupted(x):
        if x == whole[11].x:
            raise KeyboardInterrupt
        return score_of(x)

    own = search(url_in(parts), parts, sampler=sampler, seed=3, resume=True)
    with pytest.raises(KeyboardInterrupt):
        own.run(13, interrupted)
    again = ran(parts, 13, sampler=sampler, seed=3, resume=True)
    assert [(one.place, one.x, one.score) for one in again] == [
        (one.place, one.x, one.score) for one in whole
    ]
    # Another seed, other trials, but for the first, in which all units are alike.
    other = ran(tmp_path / 'other', 3, sampler=sampler, seed=4)
    assert other[0].x == whole[0].x and other[1].x != whole[1].x


def test_gaussian_process_beats_chance_and_equal_numbers(tmp_path):
    best = {
        sampler: max(one.score for one in ran(tmp_path / sampler, 20, sampler=sampler))
        for sampler in ('gp', 'random')
    }
    assert best['gp'] > best['random'] > score_of(dict.fromkeys(NAMES, 0.5))
    assert best['gp'] > -0.02


def test_of_equal_scores_the_first_trial_is_the_best(tmp_path):
    own = search(url_in(tmp_path), tmp_path, sampler='random')
    told = []
    tried = own.run(4, lambda x: 1.0, told.append)
    assert best_of(tried).place == 0 and best_of([]) is None
    assert [len(part) for part in told] == [0, 1, 2, 3, 4]
    # Fewer than there are, and more.
    own = search(url_in(tmp_path), tmp_path, sampler='random', resume=True)
    assert own.run(2, lambda x: pytest.fail('nothing is left to do')) == tried
    assert len(own.run(6, lambda x: 2.0)) == 6 and best_of(own.tried()).place == 4


def test_a_score_that_is_no_number_ends_the_search_and_frees_the_place(tmp_path):
    own = search(url_in(tmp_path), tmp_path, sampler='random')
    with pytest.raises(ValueError, match='the score of trial 0 is nan'):
        own.run(2, lambda x: float('nan'))
    assert own.running() == [] and len(own.run(2, score_of)) == 2


def test_a_killed_search_goes_on_with_the_trial_that_it_was_at(tmp_path):
    whole = ran(tmp_path / 'whole', 14)
    folder = tmp_path / 'killed'
    url = url_in(folder)
    for number in (4, 12):  # by chance, and by the Gaussian process
        process = worker(url, folder, 14, 'seconds=0.3')
        wait_until(lambda number=number: lines(folder) >= number, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    process = worker(url, folder, 14)
    out, err = process.communicate(50)
    assert process.returncode == 0, err
    assert '14 trials are complete' in out
    assert out.count(', which is gone, is tried again') == 1
    own = search(url, folder, resume=True)
    assert [(one.place, one.x, one.score) for one in own.tried()] == [
        (one.place, one.x, one.score) for one in whole
    ]
    states = [trial.state.name for trial in own.study.trials]
    assert (states.count('COMPLETE'), states.count('FAIL'), len(states)) == (14, 2, 16)
    asked = [json.dumps(line['x']) for line in evaluated(folder)]
    assert len(asked) == 16 and len(set(asked)) == 14


@pytest.mark.parametrize('kind', ['sqlite', 'journal'])
def test_two_processes_on_one_study_try_nothing_twice(tmp_path, kind):
    url = url_in(tmp_path) if kind == 'sqlite' else str(tmp_path / 'study.log')
    workers = [worker(url, tmp_path, 15, 'seconds=0.1', 'sampler=tpe') for _ in range(2)]
    outputs = [process.communicate(55) for process in workers]
    assert [process.returncode for process in workers] == [0, 0], outputs
    own = search(url, tmp_path, sampler='tpe', resume=True)
    tried = own.tried()
    assert [one.place for one in tried] == list(range(15)) and own.running() == []
    done = evaluated(tmp_path)
    assert len(done) == 15 and len({json.dumps(line['x']) for line in done}) == 15
    assert {line['pid'] for line in done} == {process.pid for process in workers}
    for one in tried:
        assert one.x in [line['x'] for line in done] and one.score == score_of(one.x)


@pytest.mark.parametrize(
    'facts, message',
    [
        (dict(budget='macs=50%'), "its budget is 'macs=60%', here it is 'macs=50%'"),
        (dict(network='def'), "its network is 'abc', here it is 'def'"),
        (dict(caps={'heads': 0.5}), r"its caps is None, here it is \{'heads': 0.5\}"),
    ],
)
def test_a_study_of_another_search_is_refused(tmp_path, facts, message):
    ran(tmp_path, 1)
    with pytest.raises(ValueError, match=f"the study 'mcf_mm' is of another search: {message}"):
        search(url_in(tmp_path), tmp_path, resume=True, facts=facts)


def test_a_study_that_is_there_needs_resume_and_must_be_one_of_ours(tmp_path):
    ran(tmp_path, 1)
    with pytest.raises(ValueError, match=r"has a study 'mcf_mm' already: .* resume \(--resume\)"):
        search(url_in(tmp_path), tmp_path)
    other = f'sqlite:///{tmp_path / "other.db"}'
    study = optuna.create_study(storage=other, study_name='mcf_mm')
    study.optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="the study 'mcf_mm' is not one of mcf_mm"):
        search(other, tmp_path, resume=True)


def test_arguments_are_checked(tmp_path):
    for settings, message in (
        (dict(sampler='grid'), r"sampler must be one of \('gp', 'tpe', 'random', 'botorch'\)"),
        (dict(seed=-1), 'seed must be a whole number'),
        (dict(patience=-1), 'patience must be seconds, 0 or more, got -1'),
    ):
        with pytest.raises(ValueError, match=message):
            search(url_in(tmp_path), tmp_path, **settings)
    with pytest.raises(ValueError, match='trials must be at least 1, got 0'):
        ran(tmp_path, 0)
    for url, message in (
        ('nowhere', "a journal file that ends with .log, got 'nowhere'"),
        ('nothing://me:secret@host/db', r"'nothing://me:\*\*\*@host/db' is no URL of a database"),
    ):
        with pytest.raises(ValueError, match=message):
            open_storage(url)
    assert hidden('sqlite:////tmp/a.db') == 'sqlite:////tmp/a.db'


def test_samplers_that_are_not_installed_say_how_to_install_them(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'optuna_integration.botorch', None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[search,botorch\]'"):
        check_sampler('botorch')


def test_optuna_that_is_not_installed_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__('sys').modules, 'optuna', None)
    with pytest.raises(ImportError, match=r"a search needs optuna .*pip install -e '\.\[search\]'"):
        search(url_in(tmp_path), tmp_path)


def test_samplers_differ_from_trial_to_trial_and_not_from_time_to_time():
    study = optuna.create_study()
    space = optuna.distributions.FloatDistribution(0, 1)

    def first(seed, trial):
        sampler = build_sampler('random', seed, trial)
        return sampler.sample_independent(study, None, 'x', space)

    assert first(0, 1) == first(0, 1) != first(0, 2) != first(1, 2)


def test_a_storage_that_answers_again_is_waited_for():
    said, left = [], [OSError('gone'), OSError('gone')]

    def call():
        if left:
            raise left.pop()
        return 5

    assert Patience('postgresql://me:secret@host/db', 60, said.append)(call) == 5
    where = 'postgresql://me:***@host/db'
    assert said == [f'{where} does not answer, trying for 60 s: gone', f'{where} answers again']
    with pytest.raises(KeyError):
        Patience('sqlite:///a.db')(lambda: {}[0])


def test_a_score_that_cannot_be_written_is_kept_and_told_at_the_next_start(tmp_path, monkeypatch):
    own = search(url_in(tmp_path), tmp_path, sampler='random', patience=0.2)
    own.run(2, score_of)
    tell = own.study.tell

    def gone(number, *values, **more):
        raise OSError('the disk is gone')

    monkeypatch.setattr(own.study, 'tell', gone)
    with pytest.raises(StorageLost, match='for 0.2 s: the disk is gone; the score of trial 2 is'):
        own.run(5, score_of)
    monkeypatch.setattr(own.study, 'tell', tell)
    (path,) = tmp_path.glob('pending_*.json')
    kept = json.loads(path.read_text())
    assert kept['place'] == 2 and kept['score'] == score_of(kept['x'])
    # Told while the trial is still there; nothing is evaluated again.
    content = path.read_text()
    said = []
    again = search(url_in(tmp_path), tmp_path, sampler='random', resume=True, say=said.append)
    assert said == [f'{path}: the score of trial 2 is in the study now'] and not path.exists()
    assert [one.place for one in again.tried()] == [0, 1, 2]
    assert again.tried()[2].x == kept['x']
    # Another time it has been scored already.
    path.write_text(content)
    said.clear()
    search(url_in(tmp_path), tmp_path, sampler='random', resume=True, say=said.append)
    assert said == [f'{path}: trial 2 has been scored meanwhile, or is no more']
    path.write_text('{')
    with pytest.raises(ValueError, match='is no score as a search keeps it'):
        search(url_in(tmp_path), tmp_path, sampler='random', resume=True)


def test_a_kept_score_is_not_lost_when_another_worker_has_given_the_trial_up(tmp_path):
    own = search(url_in(tmp_path), tmp_path, sampler='random')
    trial = own._claim(3)
    x = own._numbers(trial, 0)
    own._fail(trial.number)
    claim = trial.user_attrs['claim']
    kept = dict(study='mcf_mm', number=0, place=0, claim=claim, x=x, score=7.0)
    (tmp_path / 'pending_0.json').write_text(json.dumps(kept))
    again = search(url_in(tmp_path), tmp_path, sampler='random', resume=True)
    assert [(one.place, one.x, one.score) for one in again.tried()] == [(0, x, 7.0)]


def test_workers_that_are_gone_are_known():
    own = this_worker()
    host, pid, start = own.rsplit(':', 2)
    assert int(pid) == os.getpid() and not is_dead(own)
    assert not is_dead(f'elsewhere:{pid}:1')
    if start != '-':
        assert is_dead(f'{host}:{pid}:1')  # the same pid, at another time
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert is_dead(f'{host}:{child}:{start}')
