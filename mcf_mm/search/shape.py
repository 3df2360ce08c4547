"""Shapes of a policy: numbers that a search proposes, and the sizes on the budget that they mean.

A sampler proposes one number in [0, 1] for each unit and kind. They say how the units differ, not
how much is dropped: a strength scales them until the cost is the budget, to the last element
(ours). So every proposal is feasible, and no trial is spent on learning what a policy costs.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial

from mcf_mm.pruning.budget import Budget, parse_budget, told_cost, within_budget
from mcf_mm.pruning.costs import Costs
from mcf_mm.pruning.policy import uniform, why_missing
from mcf_mm.pruning.structure import check_ratio
from mcf_mm.pruning.units import Units

#: Largest share to drop of each kind: of heads, hidden units and tokens the paper's; the others
#: are ours.
CAPS = {'heads': 0.5, 'hidden': 0.5, 'tokens': 0.5, 'inputs': 0.9, 'qk': 0.9, 'v': 0.9}
#: The kinds of the paper.
KINDS = ('heads', 'hidden', 'tokens')
#: Smaller proposals count as this, so that every unit can reach its cap (ours).
LEAST = 0.01


class Shape:
    """Turns numbers in [0, 1] into sizes that cost exactly the budget.

    With strength s, t = s / (1 - s), a unit drops ``cap * min(1, max(x, 0.01) * t)`` of a kind.
    Equal numbers mean that all units drop the same share of their caps.

    Args:
        units: Units of the dense network.
        costs: Its costs, see :func:`~mcf_mm.pruning.costs.measure_costs`.
        budget: See :func:`~mcf_mm.pruning.budget.parse_budget`.
        kinds: What may be pruned. Defaults to those of :data:`KINDS` that the network has.
        caps: Largest share to drop by kind, in (0, 1). Defaults to :data:`CAPS`; kinds that are not
            named keep theirs.
        floors: Fewest elements by kind. Defaults to 1 of each.

    Attributes:
        names: One name for each number: ``'blocks.0.mlp.hidden'``; the units of ``tokens`` share
            one, ``'tokens'``.
        what: What the budget is of.
        wanted: How many that are.

    Raises:
        ValueError: A kind or a cap is unknown or out of range, the network meets the budget as it
            is, or dropping as much as the caps allow does not.

    Example:
        >>> shape = Shape(units, costs, 'macs=60%')
        >>> sizes = shape.sizes(dict.fromkeys(shape.names, 0.5))
    """

    def __init__(
        self,
        units: Units,
        costs: Costs,
        budget: Budget,
        kinds: Iterable[str] | None = None,
        caps: Mapping[str, float] | None = None,
        floors: Mapping[str, int] | None = None,
    ):
        self.units, self.costs, self.budget, self.floors = units, costs, budget, floors
        known = {kind for unit in units.every for kind in unit.kinds}
        self.kinds = _checked_kinds(units, kinds, known)
        self.caps = _checked_caps(caps or {}, self.kinds)
        places = [
            (unit.name, kind) for unit in units.every for kind in unit.kinds if kind in self.kinds
        ]
        self.places = {
            (name, kind): kind if kind == 'tokens' else f'{name}.{kind}' for name, kind in places
        }
        self.names = list(dict.fromkeys(self.places.values()))
        self.what, self.wanted = parse_budget(budget, costs)
        dense = costs.of({})[self.what]
        if dense <= self.wanted:
            raise ValueError(
                f'the network meets the budget {budget} as it is: {told_cost(dense)} {self.what}'
            )
        self._check_reachable()

    def sizes(self, x: Mapping[str, float]) -> dict[str, dict[str, int]]:
        """Sizes within the budget such that no single element more would fit.

        Args:
            x: A number in [0, 1] for each of :attr:`names`.

        Raises:
            ValueError: A number is missing, too many or out of range.
        """
        if set(x) != set(self.names):
            other = sorted(set(x) ^ set(self.names))
            raise ValueError(
                f'there must be one number for each of the {len(self.names)} names of '
                f'the shape, missing or unknown: {other[:4]}'
            )
        for name, value in x.items():
            if not 0 <= value <= 1:
                raise ValueError(f'the number for {name} must be in [0, 1], got {value!r}')
        return within_budget(self.units, self.costs, self.budget, partial(self.at, x), self.floors)

    def at(self, x: Mapping[str, float], strength: float) -> dict[str, dict[str, int]]:
        """Sizes at a strength in [0, 1]; none grows with it."""
        times = math.inf if strength >= 1 else strength / (1 - strength)
        ratios: dict[str, dict[str, float]] = {}
        for (unit, kind), name in self.places.items():
            share = min(1.0, max(x[name], LEAST) * times)
            ratios.setdefault(unit, {})[kind] = self.caps[kind] * share
        return uniform(self.units, ratios)

    def _check_reachable(self) -> None:
        least = self.at(dict.fromkeys(self.names, 1.0), 1.0)
        for name, own in least.items():
            for kind in own:
                full = self.units.by_name[name].sizes[kind]
                own[kind] = min(full, max(own[kind], (self.floors or {}).get(kind, 1)))
        smallest = self.costs.of(least)[self.what]
        if smallest > self.wanted:
            caps = ', '.join(f'{kind}={self.caps[kind]:g}' for kind in self.kinds)
            raise ValueError(
                f'no policy meets the budget of {told_cost(self.wanted)} {self.what}: '
                f'{told_cost(smallest)} is the least when at most {caps} are dropped; raise these '
                'caps (--max-ratio), prune more kinds (--dims) or take a larger budget'
            )


def _checked_kinds(units: Units, kinds: Iterable[str] | None, known: set[str]) -> list[str]:
    if kinds is None:
        return [kind for kind in KINDS if kind in known]
    kinds = list(dict.fromkeys(kinds))
    if unknown := set(kinds) - known:
        raise ValueError(
            f'dims names {sorted(unknown)}, the network has {sorted(known)}'
            f'{why_missing(units, unknown)}'
        )
    if not kinds:
        raise ValueError(f'dims must name one kind or more of {sorted(known)}, got none')
    return kinds


def _checked_caps(caps: Mapping[str, float], kinds: list[str]) -> dict[str, float]:
    for kind, cap in caps.items():
        if kind not in kinds:
            raise ValueError(
                f'max_ratio names {kind!r}, the search is over {kinds}: add it to the dims or '
                'leave it out'
            )
        check_ratio(f'max_ratio of {kind}', cap)
        if cap == 0:
            raise ValueError(f'max_ratio of {kind} must be above 0, got {cap}')
    return {kind: float(caps.get(kind, CAPS[kind])) for kind in kinds}
