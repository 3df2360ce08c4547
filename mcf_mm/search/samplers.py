"""Proposes the numbers of a trial with Optuna's samplers, the same for the same history."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch

from mcf_mm.compat.versions import install_command
from mcf_mm.search.storage import import_optuna

#: A Gaussian process (Matern 5/2, log expected improvement), a multivariate tree-structured Parzen
#: estimator, random on the budget, and BoTorch's Gaussian process.
SAMPLERS = ('gp', 'tpe', 'random', 'botorch')
#: What every search tries first: all units drop the same share of their caps (ours), so that no
#: result is worse than that.
FIRST = 0.5


def check_sampler(name: str) -> None:
    """Check that a sampler is there.

    Raises:
        ValueError: ``name`` is none of :data:`SAMPLERS`.
        ImportError: It needs a package that is not installed.
    """
    if name not in SAMPLERS:
        raise ValueError(f'sampler must be one of {SAMPLERS}, got {name!r}')
    if name == 'botorch':
        try:
            import_module('optuna_integration.botorch')
        except ImportError as error:
            raise ImportError(
                f"sampler='botorch' needs optuna-integration and botorch ({error}): "
                f'{install_command("search", "botorch")}'
            ) from None


def build_sampler(name: str, seed: int, trial: int) -> Any:
    """A sampler for one trial alone.

    What a sampler proposes depends on the trials that are known and on its random numbers. With
    random numbers of its own for each trial a search that was interrupted goes on as if it had
    not been.

    Args:
        name: One of :data:`SAMPLERS`.
        seed: Of the search.
        trial: Number of the trial in the search.
    """
    samplers = import_optuna().samplers
    own = int(np.random.SeedSequence((seed, trial)).generate_state(1)[0])
    if name == 'gp':
        return samplers.GPSampler(seed=own)
    if name == 'tpe':
        return samplers.TPESampler(seed=own, multivariate=True, constant_liar=True)
    if name == 'random':
        return samplers.RandomSampler(seed=own)
    botorch = import_module('optuna_integration.botorch')
    return botorch.BoTorchSampler(seed=own, consider_running_trials=True)


def propose(
    sampler: Any, study: Any, trial: Any, names: Sequence[str], space: Mapping[str, Any]
) -> dict[str, float]:
    """A number for each name.

    Args:
        sampler: See :func:`build_sampler`.
        study: The study, of which it looks at complete and running trials.
        trial: The trial, running.
        names: Of the numbers.
        space: Distribution by name.
    """
    with _one_thread():
        found = sampler.sample_relative(study, trial, dict(space))
        for name in names:
            if name not in found:  # a sampler without enough trials leaves it to chance
                found[name] = sampler.sample_independent(study, trial, name, space[name])
    return {name: float(found[name]) for name in names}


def record(study: Any, trial: Any, x: Mapping[str, float], space: Mapping[str, Any]) -> None:
    """Write the numbers of a running trial to its study; those that are there already stay.

    Trials of Optuna's ask the study's sampler: here one that says what is known.
    """
    optuna = import_optuna()
    base: Any = optuna.samplers.RandomSampler

    class Given(base):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return dict(space)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, float]:
            return dict(x)

    study.sampler = Given(seed=0)
    own = optuna.trial.Trial(study, trial._trial_id)
    for name, distribution in space.items():
        own.suggest_float(name, distribution.low, distribution.high)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for the small matrices of a sampler; all of them for the network before and after.

    OMP_NUM_THREADS=1 would do that for the whole process, and only before torch is imported. A
    sampler's sums come out the same on any machine with one thread, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
