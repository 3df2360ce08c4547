"""The search itself: trials of a study that may be interrupted, and shared by several workers.

A search of N trials has N places, 0 to N - 1. A worker takes the first place that nobody has, with
a running trial that bears its name, and checks that no other worker was first: of two trials for
one place the earlier one counts. So no place is tried twice, and none beyond N. Where a worker has
died its place is free again, and is tried with the numbers that it had.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from mcf_mm.pruning.structure import check_seed, check_whole
from mcf_mm.search.pending import read_pending, write_pending
from mcf_mm.search.storage import (
    Patience,
    StorageLost,
    beating,
    hidden,
    import_optuna,
    open_storage,
)
from mcf_mm.search.workers import is_dead, this_worker

#: User attribute of a study with what it is of.
FACTS = 'search'


@dataclass(frozen=True)
class Tried:
    """A trial that is complete.

    Attributes:
        place: Its number in the search, from 0 on.
        number: Its number in the study, where those that were interrupted count too.
        x: Its numbers by name.
        score: The larger the better.
    """

    place: int
    number: int
    x: dict[str, float]
    score: float


class Search:
    """A study of Optuna's that is certainly of this search.

    Args:
        url: See :func:`~mcf_mm.search.storage.open_storage`.
        name: Of the study, for a database with several.
        facts: What the scores depend on, in JSON's types. They are kept in the study and must be
            equal to those in it.
        names: Of the numbers that are proposed, each in [0, 1].
        out_dir: Folder for scores that could not be written.
        sampler: See :data:`~mcf_mm.search.samplers.SAMPLERS`. Defaults to ``'gp'``.
        seed: Of the sampler. Defaults to 0.
        resume: Go on with a study that is there, or join others that work on it. Defaults to False.
        patience: Seconds to wait for a storage that does not answer. Defaults to 60.
        say: Prints a line. Defaults to ``print``.

    Raises:
        ImportError: Optuna, or what the sampler or the storage needs, is missing.
        ValueError: The study is of another search, or there is one and ``resume`` is not given.
        StorageLost: The storage does not answer.
    """

    def __init__(
        self,
        url: str,
        name: str,
        facts: Mapping[str, Any],
        names: Sequence[str],
        out_dir: str | Path,
        sampler: str = 'gp',
        seed: int = 0,
        resume: bool = False,
        patience: float = 60,
        say: Callable[[str], None] = print,
    ):
        self.optuna = import_optuna()
        self._samplers = import_module('mcf_mm.search.samplers')
        self._samplers.check_sampler(sampler)
        check_seed(seed)
        if not 0 <= patience < math.inf:
            raise ValueError(f'patience must be seconds, 0 or more, got {patience!r}')
        self.url, self.name, self.out_dir, self.say = url, name, Path(out_dir), say
        self.names, self.sampler, self.seed = list(names), sampler, seed
        self.space = {
            name: self.optuna.distributions.FloatDistribution(0, 1) for name in self.names
        }
        self.worker = this_worker()
        self.patiently = Patience(url, patience, say)
        self.storage = self.patiently(lambda: open_storage(url))
        self._open(json.loads(json.dumps(facts)), resume)

    def _open(self, facts: dict[str, Any], resume: bool) -> None:
        known = self.patiently(lambda: self.optuna.get_all_study_names(self.storage))
        if self.name in known and not resume:
            raise ValueError(
                f'{hidden(self.url)} has a study {self.name!r} already: go on with it, or work on '
                'it together, with resume (--resume), or give another folder, storage or study'
            )
        self.study = self.patiently(
            lambda: self.optuna.create_study(
                storage=self.storage,
                study_name=self.name,
                direction='maximize',
                load_if_exists=True,
            )
        )
        found = self.patiently(lambda: self.study.user_attrs).get(FACTS)
        if found is None:
            if self._trials():
                raise ValueError(
                    f'{hidden(self.url)}: the study {self.name!r} is not one of mcf_mm: give '
                    'another study name'
                )
            self.patiently(lambda: self.study.set_user_attr(FACTS, facts))
            found = self.patiently(lambda: self.study.user_attrs)[FACTS]
        for key in dict.fromkeys((*found, *facts)):
            if found.get(key) != facts.get(key):
                raise ValueError(
                    f'{hidden(self.url)}: the study {self.name!r} is of another search: its {key} '
                    f'is {_short(found.get(key))}, here it is {_short(facts.get(key))}; say the '
                    'same as before, or give another folder, storage or study'
                )
        self._tell_pending()

    def run(
        self,
        trials: int,
        evaluate: Callable[[Mapping[str, float]], float],
        told: Callable[[list[Tried]], None] | None = None,
    ) -> list[Tried]:
        """Work until no place is free.

        Args:
            trials: Complete trials of the study in all.
            evaluate: Score of the numbers.
            told: Called with all complete trials at the start and after each trial.

        Returns:
            All complete trials, by their place. They are fewer than ``trials`` while other workers
            are still at theirs.

        Raises:
            StorageLost: The storage does not answer. Nothing is lost.
            ValueError: A score is no finite number.
        """
        check_whole('trials', trials, 1)
        told = told or (lambda tried: None)
        told(self.tried())
        while (trial := self._claim(trials)) is not None:
            place = trial.user_attrs['place']
            try:
                with beating(self.storage, trial._trial_id):
                    x = self._numbers(trial, place)
                    score = evaluate(x)
                if not math.isfinite(score):
                    raise ValueError(f'the score of trial {place} is {score}, with {x}')
            except StorageLost:
                raise
            except BaseException:
                self._give_up(trial)
                raise
            self._tell(trial, place, x, score)
            told(self.tried())
        return self.tried()

    def tried(self) -> list[Tried]:
        """All complete trials, by their place."""
        done = [t for t in self._trials() if t.state.name == 'COMPLETE']
        first: dict[int, Tried] = {}
        for trial in done:
            place = trial.user_attrs['place']
            first.setdefault(place, Tried(place, trial.number, trial.params, trial.value))
        return [first[place] for place in sorted(first)]

    def running(self) -> list[str]:
        """Workers that are at a trial now."""
        return [t.user_attrs['worker'] for t in self._trials() if t.state.name == 'RUNNING']

    def _trials(self) -> list[Any]:
        return self.patiently(lambda: self.study.get_trials(deepcopy=False))

    def _claim(self, trials: int) -> Any:
        """A running trial for the first place that is free; None where none is."""
        state = self.optuna.trial.TrialState
        while True:
            self._retire()
            taken = {t.user_attrs['place'] for t in self._trials() if t.state.name in _TAKEN}
            place = next((number for number in range(trials) if number not in taken), None)
            if place is None:
                return None
            token = uuid4().hex
            attrs = {'place': place, 'worker': self.worker, 'claim': token}
            template = self.optuna.create_trial(state=state.RUNNING, user_attrs=attrs)
            self._add(template, token)
            own = self.patiently(partial(self._known, token))
            if not any(
                t.user_attrs['place'] == place and t.number < own.number
                for t in self._trials()
                if t.state.name in _TAKEN
            ):
                return own
            self._fail(own.number)

    def _add(self, template: Any, token: str) -> None:
        """Write a trial once, also where an attempt has come through and its answer has not."""
        tried = False

        def add() -> None:
            nonlocal tried
            if tried and self._known(token) is not None:
                return
            tried = True
            self.study.add_trial(template)

        self.patiently(add)

    def _known(self, token: str) -> Any:
        trials = self.study.get_trials(deepcopy=False)
        return next((t for t in trials if t.user_attrs.get('claim') == token), None)

    def _retire(self) -> None:
        """Free the places of dead workers: of this host by pid, of others by their beats."""
        for trial in self._trials():
            if trial.state.name != 'RUNNING':
                continue
            worker = trial.user_attrs['worker']
            # One of our own was left when the storage was lost: between trials we have none.
            if worker == self.worker or is_dead(worker):
                place = trial.user_attrs['place']
                self.say(f'trial {place} of {worker}, which is gone, is tried again')
                self._fail(trial.number)
        self.patiently(lambda: self.optuna.storages.fail_stale_trials(self.study))

    def _fail(self, number: int) -> None:
        state = self.optuna.trial.TrialState.FAIL
        self.patiently(lambda: self._told(number, state=state))

    def _told(self, number: int, *args, **kwargs) -> None:
        try:
            self.study.tell(number, *args, skip_if_finished=True, **kwargs)
        except self.optuna.exceptions.UpdateFinishedTrialError:
            pass  # another worker was quicker

    def _give_up(self, trial: Any) -> None:
        """Free the place of a trial that went wrong, if the storage lets us."""
        try:
            self._told(trial.number, state=self.optuna.trial.TrialState.FAIL)
        except Exception:  # noqa: BLE001  what went wrong is to be seen; the place is freed later
            self.say(f'trial {trial.number} could not be marked as failed')

    def _numbers(self, trial: Any, place: int) -> dict[str, float]:
        """Numbers of a trial, written to the storage: those of an earlier attempt if there was one.

        The search begins with equal numbers.
        """
        x = next(
            (
                dict(t.params)
                for t in self._trials()
                if t.user_attrs['place'] == place and set(t.params) == set(self.names)
            ),
            None,
        )
        if x is None and place == 0:
            x = dict.fromkeys(self.names, self._samplers.FIRST)
        if x is None:
            x = self.patiently(
                lambda: self._samplers.propose(
                    # Made anew for each attempt: its random numbers are used up.
                    self._samplers.build_sampler(self.sampler, self.seed, place),
                    self.study,
                    trial,
                    self.names,
                    self.space,
                )
            )
        self.patiently(lambda: self._samplers.record(self.study, trial, x, self.space))
        return x

    def _tell(self, trial: Any, place: int, x: dict[str, float], score: float) -> None:
        """Write a score, or keep it in a file where the storage does not answer."""
        try:
            self.patiently(lambda: self._told(trial.number, score))
        except StorageLost as error:
            kept = dict(study=self.name, number=trial.number, place=place, x=x, score=score)
            kept['claim'] = trial.user_attrs['claim']
            path = write_pending(self.out_dir, kept)
            raise StorageLost(f'{error}; the score of trial {place} is kept in {path}') from error
        state = self.patiently(lambda: self.study.get_trials(deepcopy=False))[trial.number].state
        if state.name != 'COMPLETE':
            self.say(f'trial {place} was taken over by another worker meanwhile, which scores it')

    def _tell_pending(self) -> None:
        """Write the scores that were kept in files, unless others have scored these places."""
        for path, kept in read_pending(self.out_dir, self.name):
            place = kept['place']
            if self._takes(kept):
                self.say(f'{path}: the score of trial {place} is in the study now')
            else:
                self.say(f'{path}: trial {place} has been scored meanwhile, or is no more')
            path.unlink()

    def _takes(self, kept: Mapping[str, Any]) -> bool:
        trials = self._trials()
        own = self.patiently(lambda: self._known(kept['claim']))
        if own is None:
            return False
        if own.state.name == 'RUNNING':
            self.patiently(lambda: self._told(own.number, kept['score']))
            return True
        place = kept['place']
        if any(t.user_attrs['place'] == place and t.state.name in _TAKEN for t in trials):
            return False
        token = uuid4().hex
        done = self.optuna.create_trial(
            value=kept['score'],
            params=kept['x'],
            distributions=self.space,
            user_attrs={'place': place, 'worker': self.worker, 'claim': token},
        )
        self._add(done, token)
        return True


#: States of a trial that has its place.
_TAKEN = ('RUNNING', 'COMPLETE')


def best_of(tried: Sequence[Tried]) -> Tried | None:
    """The best trial, of equal ones the first; None without trials."""
    return max(tried, key=lambda one: (one.score, -one.place), default=None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
