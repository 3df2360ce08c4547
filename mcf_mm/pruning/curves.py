"""Where to cut: what each size costs, and the best sizes for a budget."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcf_mm.pruning.budget import BUDGETS, budget_kind, within_budget
from mcf_mm.pruning.costs import Costs
from mcf_mm.pruning.policy import FLOORS
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.units import Units

#: Points of a kind from which sizes are first chosen; single elements fill the budget.
POINTS = 64
#: Shares that are kept in the cuts that are measured (ours).
SHARES = (0.6, 0.35)
#: Losses below this are rounding and count as it when curves are scaled (ours), in nats.
LEAST = 1e-6


@dataclass
class Curves:
    """Loss by the number of elements that go, of each kind of each unit.

    Attributes:
        loss: Of ``unit``, ``kind``: a list from 0 elements (loss 0) to all, never falling; of
            ``qk`` and ``v`` elements of each head.
        facts: How they were made, for the file.
        tokens: Loss by the share of tokens that goes at each place
            (:mod:`~mcf_mm.pruning.token_curve`); empty where that is not known.
    """

    loss: dict[str, dict[str, list[float]]]
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[float, float] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """Kinds that have a curve."""
        return sorted({kind for kinds in self.loss.values() for kind in kinds})

    @property
    def number(self) -> int:
        """How many curves there are."""
        return sum(len(kinds) for kinds in self.loss.values())

    def of(self, sizes: Sizes) -> float:
        """Predicted loss of a policy, a sum over units; see :func:`unit_loss`."""
        return sum(unit_loss(self.loss.get(name, {}), own) for name, own in sizes.items())

    def check(self, units: Units, source: str) -> None:
        """Check that they are of a network.

        Raises:
            ValueError: A unit is missing or has other sizes.
        """
        names = units.by_name
        for name, kinds in self.loss.items():
            for kind, curve in kinds.items():
                full = names[name].sizes.get(kind) if name in names else None
                if full != len(curve) - 1:
                    raise ValueError(
                        f'{source} is of another network: it has {len(curve) - 1} {kind} of '
                        f'{name}, this one has {full or "no such unit or kind"}'
                    )

    def only(self, kinds: Iterable[str]) -> 'Curves':
        """The curves of some kinds.

        Raises:
            ValueError: A kind has no curve.
        """
        wanted = list(kinds)
        if unknown := set(wanted) - set(self.kinds):
            raise ValueError(f'there are no cost curves of {sorted(unknown)}, only of {self.kinds}')
        loss = {
            name: {kind: curve for kind, curve in own.items() if kind in wanted}
            for name, own in self.loss.items()
        }
        loss = {name: own for name, own in loss.items() if own}
        return Curves(loss, self.facts, self.tokens)

    def to_json(self) -> str:
        """One JSON object; see :func:`read_curves`."""
        tokens = {str(ratio): loss for ratio, loss in self.tokens.items()}
        return json.dumps({'loss': self.loss, 'facts': self.facts, 'tokens': tokens})


def unit_loss(curves: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    """Predicted loss of sizes of a unit, a sum over kinds.

    Heads that have gone lose no channels: of ``qk`` and ``v`` only the share of the heads that stay
    counts.

    Args:
        curves: Loss by the number of elements that go, of each kind: lists, or double tensors.
        sizes: Sizes of kinds: numbers, or index tensors of equal shape. Others keep all.
    """
    total = 0.0
    for kind, curve in curves.items():
        if kind in sizes:
            loss = curve[len(curve) - 1 - sizes[kind]]
            if kind in ('qk', 'v') and 'heads' in sizes and 'heads' in curves:
                loss = loss * sizes['heads'] / (len(curves['heads']) - 1)
            total = total + loss
    return total


def read_curves(path: str | Path) -> Curves:
    """Read curves from a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON or has another form, or a curve is empty, not finite, does not
            begin at 0 or falls.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of cost curves {path}')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        loss = {
            name: {kind: [float(value) for value in curve] for kind, curve in kinds.items()}
            for name, kinds in content['loss'].items()
        }
        tokens = {float(key): float(value) for key, value in content.get('tokens', {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} has no cost curves, {{"loss": {{"unit": {{"kind": [0, ...]}}}}}}: {error!r}'
        ) from None
    for name, kinds in loss.items():
        for kind, curve in kinds.items():
            if reason := _wrong(curve):
                raise ValueError(
                    f'{path}: the cost curve of {kind} of {name} {reason}; it must be the loss '
                    'when 0, 1, ... elements go, from 0 on, and never fall'
                )
    if tokens and (reason := _wrong([0.0, *(tokens[ratio] for ratio in sorted(tokens))])):
        raise ValueError(f'{path}: the losses of tokens: the curve {reason}')
    return Curves(loss, content.get('facts', {}), tokens)


def _wrong(curve: Sequence[float]) -> str | None:
    """What is wrong with a cost curve, or None."""
    if not curve:
        return 'is empty'
    for number, value in enumerate(curve):
        if not math.isfinite(value):
            return f'is {value} at {number}'
    if curve[0] != 0:
        return f'begins at {curve[0]}'
    for number, (before, after) in enumerate(itertools.pairwise(curve), 1):
        if after < before:
            return f'falls from {before} to {after} at {number}'
    return None


def scale_curves(
    curves: Curves,
    measure: Callable[[Sizes], float],
    fitted: Curves | None = None,
    shares: Sequence[float] = SHARES,
) -> Curves:
    """Scale predicted curves to measured losses, each curve by one factor.

    The factor is the geometric mean, over a few sizes, of measured over predicted losses. Measured
    on the images that the cuts were solved on, it is compared with what is predicted for those:
    it tells how far the prediction is from the network, not how well the images stand for others.

    Args:
        curves: Predicted.
        measure: Loss of the network when it alone is cut to some sizes.
        fitted: Predicted for the images that losses are measured on. Defaults to ``curves``.
        shares: Shares that are kept in the measured cuts. Defaults to 0.6 and 0.35.
    """
    fitted = fitted or curves
    scaled: dict[str, dict[str, list[float]]] = {}
    for name, kinds in curves.loss.items():
        for kind, curve in kinds.items():
            full, logs = len(curve) - 1, []
            for share in shares:
                size = max(1, round(full * share))
                predicted = fitted.loss[name][kind][full - size]
                logs.append(_log(measure({name: {kind: size}})) - _log(predicted))
            factor = math.exp(sum(logs) / len(logs))
            scaled.setdefault(name, {})[kind] = [factor * value for value in curve]
    return Curves(scaled, {**curves.facts, 'curves': 'measured'}, curves.tokens)


def _log(value: float) -> float:
    return math.log(max(value, LEAST))


def best_sizes(
    units: Units,
    costs: Costs,
    curves: Curves,
    budget: str | Mapping[str, float],
    floors: Mapping[str, int] | None = None,
) -> dict[str, dict[str, int]]:
    """The sizes with the least predicted loss within a budget, exact to the last element.

    A Lagrange multiplier weighs cost against loss: for each unit the lower convex hull of all its
    sizes tells the best ones for every multiplier.

    Args:
        units: Units of a network.
        costs: Its costs.
        curves: Losses of the kinds that may be pruned.
        budget: See :func:`~mcf_mm.pruning.budget.parse_budget`.
        floors: Fewest elements by kind. Defaults to
            :data:`~mcf_mm.pruning.policy.FLOORS`.

    Raises:
        ValueError: The curves are of another network, or the budget cannot be met; see
            :func:`~mcf_mm.pruning.budget.within_budget`.
    """
    curves.check(units, 'the file of cost curves')
    floors = {**FLOORS, **(floors or {})}
    what = budget_kind(budget)
    index = BUDGETS.index(what) if what in BUDGETS else 0
    hulls = {
        name: _hull(name, units.by_name[name].sizes, kinds, costs, index, floors)
        for name, kinds in curves.loss.items()
    }
    slopes = torch.cat([hull.slopes for hull in hulls.values()]).sort().values

    def shape(strength: float) -> Sizes:
        # Strength s takes the share s of the steps of all hulls, those first that cost least.
        place = strength * len(slopes)
        taken = slopes[min(int(place), len(slopes)) - 1] if place >= 1 else slopes.new_tensor(-1.0)
        return {name: hull.at(float(taken)) for name, hull in hulls.items()}

    return within_budget(units, costs, budget, shape, floors)


@dataclass
class _Hull:
    """Best sizes of one unit, from all of its elements to the fewest.

    Attributes:
        sizes: Of each point, ``(P,)`` by kind.
        slopes: Loss for each unit of cost that is saved, from each point to the next, ``(P - 1,)``,
            rising.
    """

    sizes: dict[str, Tensor]
    slopes: Tensor

    def at(self, slope: float) -> dict[str, int]:
        """Sizes when every step up to ``slope`` is taken."""
        place = int((self.slopes <= slope).sum())
        return {kind: int(values[place]) for kind, values in self.sizes.items()}


def _hull(
    name: str,
    full: Mapping[str, int],
    kinds: Mapping[str, list[float]],
    costs: Costs,
    index: int,
    floors: Mapping[str, int],
) -> _Hull:
    """The lower convex hull of loss over cost, of all combinations of sizes of a unit."""
    grids = torch.meshgrid(*[_points(full[kind], floors[kind]) for kind in kinds], indexing='ij')
    sizes = {kind: grid.flatten() for kind, grid in zip(kinds, grids, strict=True)}
    curves = {kind: torch.tensor(curve, dtype=torch.double) for kind, curve in kinds.items()}
    loss = unit_loss(curves, sizes)
    price = costs.of_unit(name, {**full, **sizes})[index]
    price = torch.as_tensor(price, dtype=torch.double).expand(len(loss))
    order = torch.argsort(price, descending=True, stable=True).tolist()
    prices, losses = price.tolist(), loss.tolist()
    hull: list[int] = []
    for point in order:
        if hull and prices[point] == prices[hull[-1]]:
            if losses[point] >= losses[hull[-1]]:
                continue
            hull.pop()
        while hull and losses[point] <= losses[hull[-1]] and len(hull) > 1:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1], prices, losses) >= _slope(
            hull[-1], point, prices, losses
        ):
            hull.pop()
        hull.append(point)
    slopes = [_slope(a, b, prices, losses) for a, b in zip(hull, hull[1:], strict=False)]
    chosen = torch.tensor(hull)
    return _Hull(
        {kind: size[chosen] for kind, size in sizes.items()},
        torch.tensor(slopes, dtype=torch.double),
    )


def _slope(a: int, b: int, prices: Sequence[float], losses: Sequence[float]) -> float:
    return (losses[b] - losses[a]) / (prices[a] - prices[b])


def _points(full: int, floor: int) -> Tensor:
    """Sizes to choose from: all, or evenly spaced ones, the largest first."""
    floor = min(full, floor)
    number = min(POINTS, full - floor + 1)
    return torch.linspace(full, floor, number, dtype=torch.double).round().long().unique().flip(0)
