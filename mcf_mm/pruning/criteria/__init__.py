"""Criteria: what is important."""

from mcf_mm.pruning.criteria.base import (
    Activation,
    Criterion,
    Fisher,
    FunctionCriterion,
    Magnitude,
    Random,
    ScoreFunction,
    choose,
)
from mcf_mm.pruning.criteria.hsic import HSIC
from mcf_mm.pruning.criteria.mcf import MCF
from mcf_mm.pruning.criteria.obs import OBS

#: Criteria by the name that configs and tools take.
CRITERIA: dict[str, type[Criterion]] = {
    'mcf': MCF,
    'magnitude': Magnitude,
    'activation': Activation,
    'fisher': Fisher,
    'random': Random,
    'obs': OBS,
    'hsic': HSIC,
}


def build_criterion(criterion: 'str | dict | Criterion | ScoreFunction') -> Criterion:
    """Make a criterion of a name, a config, a function or a criterion.

    Args:
        criterion: ``'fisher'``, ``dict(type='mcf', guide=1.0)``, a function ``(unit, kind, seen)
            -> scores``, or a :class:`Criterion`.

    Raises:
        TypeError: It is none of these.
        ValueError: There is no criterion of that name, or an argument is out of range.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, str):
        criterion = {'type': criterion}
    if isinstance(criterion, dict):
        arguments = dict(criterion)
        kind = arguments.pop('type', None)
        if not isinstance(kind, type):
            if str(kind).lower() not in CRITERIA:
                raise ValueError(f'criterion must be one of {list(CRITERIA)}, got {kind!r}')
            kind = CRITERIA[str(kind).lower()]
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ValueError(f'criterion {criterion}: {error}') from None
    if callable(criterion):
        return FunctionCriterion(criterion)
    raise TypeError(
        f'criterion must be a name, a dict, a function or a Criterion, got {criterion!r}'
    )


__all__ = [
    'CRITERIA',
    'HSIC',
    'MCF',
    'OBS',
    'Activation',
    'Criterion',
    'Fisher',
    'FunctionCriterion',
    'Magnitude',
    'Random',
    'build_criterion',
    'choose',
]
