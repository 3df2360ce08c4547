"""The closed form (ours): what to drop so that the rest, solved anew, loses least."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from mcf_mm.pruning.budget import Budget
from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.costs import Costs
from mcf_mm.pruning.criteria.base import Criterion
from mcf_mm.pruning.curves import SHARES, Curves, best_sizes, scale_curves
from mcf_mm.pruning.moments import MomentObserver
from mcf_mm.pruning.observers import Observer
from mcf_mm.pruning.pairs import PairObserver
from mcf_mm.pruning.policy import FLOORS
from mcf_mm.pruning.rotation import Turn, find_turn, find_turns, turn, turn_moments
from mcf_mm.pruning.solves import (
    RemovalOrder,
    augmented,
    group_removal_order,
    removal_order,
)
from mcf_mm.pruning.structure import Sizes, Structure
from mcf_mm.pruning.token_curve import RATIOS, best_with_tokens, measure_tokens
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Attention, Units
from mcf_mm.pruning.validation import (
    KEPT,
    best_ridge,
    judged_groups,
    judged_pairs,
    judged_removal,
    judged_values,
)


class OBS(Criterion):
    """Optimal brain surgeon for hidden units, inputs and heads; best bases for ``qk`` and ``v``.

    Hidden units and inputs go one by one, the one first whose removal costs least when what reads
    them is solved anew (:func:`~mcf_mm.pruning.solves.removal_order`); heads likewise. Channels of
    ``qk`` and ``v`` are first written in the basis in which the last ones matter least
    (:mod:`~mcf_mm.pruning.rotation`), which changes the weights and not the function, and the last
    ones go. Costs are in the metric of the loss (an empirical Fisher matrix).

    Args:
        metric: ``'fisher'`` measures errors as the loss feels them, which needs gradients;
            ``'plain'`` as they are. Defaults to ``'fisher'``.
        allocation: Where a budget cuts: by ``'predicted'`` losses, or by ``'measured'`` ones, which
            scale the predicted to cuts of one unit at a time. Detectors have no class scores to
            measure and take the predicted, with a warning. Defaults to ``'measured'``.

    Attributes:
        turns: The changes of basis of the last selection.
        curves: The cost curves of the last plan; None before.
        seen: What they were made of; None before.

    Raises:
        ValueError: An argument is none of these.
    """

    #: Tokens must be asked for: the small network is then no backbone of a detector.
    budget_kinds = frozenset(('heads', 'qk', 'v', 'inputs', 'hidden'))
    #: Fewer channels than these say little and compute slowly (ours).
    floors: Mapping[str, int] = {**FLOORS, 'qk': 8, 'v': 8, 'hidden': 16, 'inputs': 16}
    labels = 'sampled'
    compensation = 'least_squares'

    def __init__(self, metric: str = 'fisher', allocation: str = 'measured'):
        if metric not in ('fisher', 'plain'):
            raise ValueError(f"metric must be 'fisher' or 'plain', got {metric!r}")
        if allocation not in ('measured', 'predicted'):
            raise ValueError(f"allocation must be 'measured' or 'predicted', got {allocation!r}")
        self.metric, self.allocation = metric, allocation
        self.turns: dict[tuple[str, str], Turn] = {}
        self.curves: Curves | None = None
        self.seen: Seen | None = None
        self._orders: dict[tuple[str, str], RemovalOrder] = {}
        self._costs: dict[tuple[str, str], Tensor] = {}
        self._fitted: dict[tuple[str, str], Tensor] = {}

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        self._orders, self._costs, self._fitted = {}, {}, {}
        felt = self.metric == 'fisher'
        return [
            PairObserver(unit, felt)
            if kind == 'qk' and isinstance(unit, Attention)
            else MomentObserver(unit, kind, felt)
            for unit in units
            for kind in sizes.get(unit.name, ())
        ]

    def order(self, unit: Unit, kind: str, seen: Seen) -> RemovalOrder:
        """In which order inputs, hidden units or heads go; computed once."""
        self._look(unit, kind, seen)
        return self._orders[unit.name, kind]

    def cost(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        """Loss when n elements (of ``qk`` and ``v``: of each head) go, double, from 0 on.

        Half of the quadratic form of the Fisher matrix is the divergence of the predictions, to
        second order. It is judged on other images than it was solved on
        (:mod:`~mcf_mm.pruning.validation`) unless what was seen comes from a file.
        """
        self._look(unit, kind, seen)
        return self._costs[unit.name, kind] / 2

    def _look(self, unit: Unit, kind: str, seen: Seen) -> None:
        """Find order, cost and ridge term of one kind of one unit."""
        key = (unit.name, kind)
        if key in self._costs:
            return
        if kind == 'qk' and isinstance(unit, Attention):
            pairs = seen.pairs(unit)
            own = find_turn(unit, kind, seen).cost
            self._fitted[key] = own
            self._costs[key] = own if pairs.halves is None else judged_pairs(pairs.halves)
            return
        place = 'v' if kind == 'heads' else kind
        moments = seen.moments(unit, place)
        weight = augmented(dict(unit.consumers())[place])
        halves, heads = moments.halves, unit.sizes.get('heads', 1)
        if halves is not None:
            halves = halves[0].double(), halves[1].double()
        if kind == 'v' and isinstance(unit, Attention):
            own = find_turn(unit, kind, seen).cost
            self._fitted[key] = own
            self._costs[key] = own if halves is None else judged_values(weight, halves, heads)
            return
        known = moments.second, moments.metric
        if kind == 'heads':
            order = group_removal_order(weight, *known, heads, moments.ridge)
            judged = None if halves is None else judged_groups(weight, halves, heads)
        else:
            judged = None
            if halves is not None:
                half_order, judged = judged_removal(weight, halves)
                kept = half_order.kept(max(1, round(KEPT * len(half_order.order))))
                moments.ridge = best_ridge(weight, halves, kept.to(weight.device))
            order = removal_order(weight, *known, moments.ridge)
        self._orders[key], self._fitted[key] = order, order.cost
        self._costs[key] = order.cost if judged is None else judged

    def predict_curves(
        self,
        units: Sequence[Unit],
        kinds: Mapping[str, Iterable[str]],
        seen: Seen,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Curves:
        """Predict from moments and metric what each size costs, without running the network.

        Args:
            units: Units of the dense network.
            kinds: Kinds that may be pruned, by unit.
            seen: What the observers saw.
            progress: Called with what is being done, how much of it is done and how much there is.
                Defaults to None.
        """
        number = sum(len(list(kinds.get(unit.name, ()))) for unit in units)
        done = count(1)

        def cost(unit: Unit, kind: str) -> Tensor:
            own = self.cost(unit, kind, seen)
            if progress is not None:
                progress('computing cost curves', next(done), number)
            return own

        return self._curves(units, kinds, cost)

    def _curves(
        self,
        units: Sequence[Unit],
        kinds: Mapping[str, Iterable[str]],
        cost: Callable[[Unit, str], Tensor],
    ) -> Curves:
        loss: dict[str, dict[str, list[float]]] = {}
        for unit in units:
            for kind in kinds.get(unit.name, ()):
                loss.setdefault(unit.name, {})[kind] = cost(unit, kind).tolist()
        return Curves(loss, {'curves': 'predicted'})

    def check_budget(self, kinds: Iterable[str]) -> None:
        if 'tokens' in kinds and self.allocation == 'predicted':
            raise ValueError(
                "allocation='predicted' knows nothing of tokens, whose losses are measured: take "
                "'measured', or leave tokens out"
            )

    def plan(
        self,
        units: Units,
        kinds: Mapping[str, Iterable[str]],
        seen: Seen,
        costs: Costs,
        budget: Budget,
        curves: Curves | None = None,
        probe: Any = None,
    ) -> dict[str, dict[str, int]]:
        """The sizes that lose least within a budget, by cost curves.

        Raises:
            ValueError: Tokens are to be pruned, and nothing can be measured.
        """
        own = {kind for names in kinds.values() for kind in names}
        if curves is None:
            kinds = {name: [k for k in names if k != 'tokens'] for name, names in kinds.items()}
            curves = self.predict_curves(units, kinds, seen, probe and probe.progress)
            measured = self.allocation == 'measured'
            if measured and (probe is None or not probe.can_measure):
                warnings.warn(
                    'there are no class scores (or no images) to measure losses by: sizes are '
                    "chosen by predicted ones (allocation='predicted')",
                    stacklevel=3,
                )
                measured = False
            if measured:
                number = curves.number * len(SHARES) + len(RATIOS) * ('tokens' in own)
                done = count(1)

                def measure(sizes: Sizes) -> float:
                    loss = probe.loss(sizes, self, seen)
                    probe.progress('measuring cuts', next(done), number)
                    return loss

                fitted = self._curves(
                    units, kinds, lambda unit, kind: self._fitted[unit.name, kind] / 2
                )
                curves = scale_curves(curves, measure, fitted)
                if 'tokens' in own:
                    curves.tokens = measure_tokens(units, measure)
        self.curves, self.seen = curves, seen
        if 'tokens' in own:
            return best_with_tokens(units, costs, curves, sorted(own), budget, self.floors)
        return best_sizes(units, costs, curves.only(own), budget, self.floors)

    def turn(self, units: Sequence[Unit], sizes: Sizes, seen: Seen) -> Seen:
        """Write what is to be pruned of ``qk`` and ``v`` in its best basis, in place.

        Returns:
            ``seen`` in the new bases.
        """
        for unit in units:
            if 'heads' in sizes.get(unit.name, ()):
                self.order(unit, 'heads', seen)  # the ridge is of the basis as it is
        self.turns = find_turns(units, sizes, seen)
        turn(units, self.turns)
        return self.seen_turned(seen)

    @property
    def turned(self) -> list[tuple[str, str]]:
        return list(self.turns)

    def turn_as_well(self, units: Sequence[Unit]) -> None:
        turn(units, self.turns)

    def seen_turned(self, seen: Seen) -> Seen:
        """What was seen, in the bases of :attr:`turns`."""
        for (name, kind), own in self.turns.items():
            if kind == 'v':
                moments = turn_moments(seen.moments(name, 'v'), own.into[0])
                seen = seen.replaced(MomentObserver, name, 'v', moments)
        return seen

    def select(self, units: Sequence[Unit], sizes: Sizes, seen: Seen) -> Structure:
        """Choose what is kept; ``qk`` and ``v`` have been turned."""
        kept: dict[str, dict[str, Tensor]] = {}
        self.importance = {}
        for unit in units:
            own = sizes.get(unit.name, {})
            chosen: dict[str, Tensor] = {}
            for kind in (kind for kind in unit.kinds if kind in own):
                if kind in ('qk', 'v'):
                    heads = chosen.get('heads', torch.arange(unit.sizes['heads']))
                    first = torch.arange(own[kind])
                    chosen[kind] = (heads[:, None] * unit.sizes[kind] + first).flatten()
                    continue
                order = self.order(unit, kind, seen)
                chosen[kind] = order.kept(own[kind])
                scores = torch.empty(len(order.order), dtype=torch.double)
                scores[order.order] = order.cost.diff()
                self.importance.setdefault(unit.name, {})[kind] = scores.float()
            if chosen:
                kept[unit.name] = unit.complete(chosen)
        return Structure(kept)
