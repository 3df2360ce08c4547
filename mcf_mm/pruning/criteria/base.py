"""Criteria: importance of each element, from weights and from what was seen."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcf_mm.pruning.budget import Budget, within_budget
from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.costs import Costs
from mcf_mm.pruning.observers import ActivationObserver, GradientObserver, Observer
from mcf_mm.pruning.policy import FLOORS, without_tokens
from mcf_mm.pruning.structure import Sizes, Structure, check_seed
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Units

#: A user's own criterion: scores ``(count,)`` of a kind of a unit, the larger the more important.
ScoreFunction = Callable[[Unit, str, Seen], Tensor]


class Criterion:
    """Scores elements, and keeps those with the largest scores.

    Subclasses write :meth:`scores`, and :meth:`observers` if they need other than the activations
    at each kind.

    Attributes:
        kinds: Kinds that it can score; None for all.
        budget_kinds: Kinds that a budget prunes unless others are named.
        floors: Fewest elements of each kind that a budget leaves.
        labels: Of which classes gradients are taken, see
            :func:`~mcf_mm.pruning.calibration.calibrate`.
        compensation: What folds dropped elements into those that stay, unless another is asked
            for.
        importance: Scores by unit and kind of the last selection, for reports.
    """

    kinds: tuple[str, ...] | None = None
    budget_kinds: frozenset[str] = frozenset(('inputs', 'hidden'))
    floors: Mapping[str, int] = FLOORS
    labels: str = 'predicted'
    compensation: str = 'none'

    def prepare(self, model: nn.Module) -> None:
        """Look at the network that is about to be pruned."""

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        """What calibration is to gather: by default the activations at each kind to be pruned."""
        return [
            ActivationObserver(unit, kind) for unit in units for kind in sizes.get(unit.name, ())
        ]

    def check_budget(self, kinds: Iterable[str]) -> None:
        """Check that a budget may prune these kinds, before any image is read.

        Raises:
            ValueError: It may not.
        """

    def plan(
        self,
        units: Units,
        kinds: Mapping[str, Iterable[str]],
        seen: Seen,
        costs: Costs,
        budget: Budget,
        curves: Any = None,
        probe: Any = None,
    ) -> dict[str, dict[str, int]]:
        """Sizes within a budget: by default all units drop the same share of these kinds.

        Args:
            units: Units of the network.
            kinds: Kinds that may be pruned, by unit.
            seen: Result of calibration.
            costs: Costs of the network.
            budget: See :func:`~mcf_mm.pruning.budget.parse_budget`.
            curves: Cost curves, for criteria that have some.
            probe: Measures cuts, for criteria that want to
                (:class:`~mcf_mm.pruning.measure.Probe`).
        """
        if curves is not None:
            raise ValueError(f"cost curves are of the criterion 'obs', got {type(self).__name__}")
        own = {kind for names in kinds.values() for kind in names}
        return within_budget(units, costs, budget, sorted(own), self.floors)

    def turn(self, units: Sequence[Unit], sizes: Sizes, seen: Seen) -> Seen:
        """Write elements in another basis before the choice, in place; by default in none.

        The function of the network must stay.

        Returns:
            ``seen`` in the new basis.
        """
        return seen

    @property
    def turned(self) -> list[tuple[str, str]]:
        """Units and kinds that were written in another basis last."""
        return []

    def turn_as_well(self, units: Sequence[Unit]) -> None:
        """Do to the units of a copy of the network, such as an average, what was done last."""

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        """Importance of each element, ``(unit.count(kind),)``."""
        raise NotImplementedError

    def select(self, units: Sequence[Unit], sizes: Sizes, seen: Seen) -> Structure:
        """Choose what is kept: the largest scores, of equal ones the first.

        Args:
            units: Units in the order of the forward pass.
            sizes: How many elements are kept.
            seen: Result of calibration.

        Raises:
            ValueError: Scores are not finite or not one for each element.
        """
        kept: dict[str, dict[str, Tensor]] = {}
        self.importance: dict[str, dict[str, Tensor]] = {}
        for unit in units:
            own = sizes.get(unit.name, {})
            chosen: dict[str, Tensor] = {}
            for kind in (kind for kind in unit.kinds if kind in own):
                scores = self._checked(unit, kind, seen)
                self.importance.setdefault(unit.name, {})[kind] = scores
                groups = torch.arange(unit.groups(kind))
                if unit.groups(kind) > 1:
                    groups = chosen.get('heads', groups)
                chosen[kind] = largest(scores, unit.groups(kind), own[kind], groups)
            if chosen:
                kept[unit.name] = unit.complete(chosen)
        return Structure(kept)

    def _checked(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        scores = torch.as_tensor(self.scores(unit, kind, seen)).detach().float().cpu()
        if scores.shape != (unit.count(kind),):
            raise ValueError(
                f'the criterion gave scores of shape {tuple(scores.shape)} for {kind} of '
                f'{unit.name}: it must be one for each element, ({unit.count(kind)},)'
            )
        if not scores.isfinite().all():
            raise ValueError(
                f'the criterion gave scores that are not finite for {unit.name}.{kind}'
            )
        return scores


def choose(criterion: Criterion, units: Sequence[Unit], sizes: Sizes, seen: Seen) -> Structure:
    """What is kept: a criterion selects, and of tokens the first ranks stay.

    Args:
        criterion: It selects all but tokens.
        units: Units in the order of the forward pass.
        sizes: How many elements are kept.
        seen: Result of calibration.
    """
    kept = dict(criterion.select(units, without_tokens(sizes), seen))
    for name, kinds in sizes.items():
        if 'tokens' in kinds:
            kept[name] = {'tokens': torch.arange(kinds['tokens'])}
    return Structure(kept)


def largest(scores: Tensor, groups: int, number: int, chosen: Tensor) -> Tensor:
    """Ascending indices of the ``number`` largest scores in each of the ``chosen`` groups."""
    grouped = scores.unflatten(0, (groups, -1))
    best = grouped[chosen].argsort(dim=1, descending=True, stable=True)[:, :number]
    return (best + chosen[:, None] * grouped.shape[1]).flatten().sort().values


class FunctionCriterion(Criterion):
    """A user's own function as a criterion.

    Args:
        function: ``function(unit, kind, seen)`` gives one score for each element.
    """

    def __init__(self, function: ScoreFunction):
        self.function = function

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        own = getattr(self.function, 'observers', None)
        return super().observers(units, sizes) if own is None else own(units, sizes)

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        return self.function(unit, kind, seen)


def norms(unit: Unit, kind: str) -> Tensor:
    """Norm of the weights of each element, ``(count,)``, over all parameters that it lies in."""
    total = torch.zeros(unit.count(kind), dtype=torch.double)
    for axis in unit.axes(kind):
        parameter = unit.parameter(axis.parameter)
        if parameter is not None and parameter.dim() > 1:
            weight = parameter.detach().double().movedim(axis.dim, 0).flatten(1).square().sum(1)
            entries = weight[axis.offset : axis.offset + len(total) * axis.block]
            total += entries.unflatten(0, (-1, axis.block)).sum(1).cpu()
    return total.sqrt()


class Magnitude(Criterion):
    """Norm of the weights that an element has."""

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        return []

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        return norms(unit, kind)


class Random(Criterion):
    """Random numbers: of each unit its own, the same on every device.

    Args:
        seed: Chooses them. Defaults to 0.

    Raises:
        ValueError: ``seed`` is no whole number or out of range.
    """

    def __init__(self, seed: int = 0):
        check_seed(seed)
        self.seed = seed

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        return []

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        generator = generator_of(self.seed, f'{unit.name}.{kind}')
        return torch.rand(unit.count(kind), generator=generator)


def generator_of(seed: int, name: str) -> torch.Generator:
    """A generator that depends on a seed and on a name alone."""
    number = int.from_bytes(hashlib.sha256(f'{seed} {name}'.encode()).digest()[:7], 'big')
    return torch.Generator().manual_seed(number)


class Activation(Criterion):
    """Size of what an element contributes: its root mean square times the norm of what reads it.

    Of ``heads`` the sum over their value channels; of ``qk`` the product of both root mean
    squares.
    """

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        rms = seen[unit, kind].rms.double().cpu()
        if kind == 'qk':
            query, key = rms.unflatten(0, (2, -1))
            return query * key
        readers = dict(unit.consumers())
        reader = readers['v' if kind == 'heads' else kind]
        scores = rms * reader.weight.detach().double().norm(dim=0).cpu()
        if kind == 'heads':
            scores = scores.square().unflatten(0, (unit.sizes['heads'], -1)).sum(1).sqrt()
        return scores


class Fisher(Criterion):
    """Squared change of the loss, to first order, when an element is dropped (Group Fisher)."""

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        return [GradientObserver(unit, kind) for unit in units for kind in sizes.get(unit.name, ())]

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        return seen.gradient(unit, kind)
