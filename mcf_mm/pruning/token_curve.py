"""Tokens in a budget of the closed form (ours): which share goes is weighed against other cuts.

Tokens make all units behind them cheaper, so their cost is no sum over units as that of the other
kinds. A few shares are measured once, one for all places; for each of them the other kinds get the
sizes that lose least within what is left of the budget, and the best sum of losses wins.
"""

from collections.abc import Callable, Iterable, Mapping

from mcf_mm.pruning.budget import Budget, parse_budget
from mcf_mm.pruning.costs import Costs
from mcf_mm.pruning.curves import Curves, best_sizes
from mcf_mm.pruning.policy import uniform
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.units import Units

#: Shares of the tokens that arrive at a place which are tried (ours); the paper goes up to 0.5.
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


def token_sizes(units: Units, ratio: float) -> dict[str, dict[str, int]]:
    """Sizes of the units of tokens when each place drops this share; none for 0."""
    return uniform(units, {'tokens': ratio}) if ratio else {}


def measure_tokens(units: Units, measure: Callable[[Sizes], float]) -> dict[float, float]:
    """Measure what each of :data:`RATIOS` loses, of the dense network.

    Args:
        units: Its units.
        measure: Loss of the network when it alone is cut to some sizes.

    Returns:
        Losses by ratio, never falling.
    """
    losses: dict[float, float] = {}
    least = 0.0
    for ratio in RATIOS:
        least = losses[ratio] = max(least, measure(token_sizes(units, ratio)))
    return losses


def best_with_tokens(
    units: Units,
    costs: Costs,
    curves: Curves,
    kinds: Iterable[str],
    budget: Budget,
    floors: Mapping[str, int] | None = None,
) -> dict[str, dict[str, int]]:
    """The sizes with the least predicted loss within a budget, tokens among them.

    Args:
        units: Units of a network.
        costs: Its costs.
        curves: Losses of the kinds, and of tokens.
        kinds: Kinds that may be pruned, ``tokens`` among them.
        budget: See :func:`~mcf_mm.pruning.budget.parse_budget`.
        floors: Fewest elements by kind. Defaults to :data:`~mcf_mm.pruning.policy.FLOORS`.

    Raises:
        ValueError: The curves know nothing of tokens, or no share of them meets the budget.
    """
    if not curves.tokens:
        raise ValueError(
            "there are no measured losses of tokens: measure them (allocation='measured', images "
            'and class scores), in another file of cost curves'
        )
    others = [kind for kind in kinds if kind != 'tokens']
    what, wanted = parse_budget(budget, costs)
    best, error = None, None
    for ratio, loss in {0.0: 0.0, **curves.tokens}.items():
        sizes = token_sizes(units, ratio)
        left = costs.with_tokens(sizes)
        if left.of({})[what] > wanted:
            if not others:
                continue
            try:
                own = best_sizes(units, left, curves.only(others), {what: wanted}, floors)
            except ValueError as caught:
                error = caught
                continue
            loss, sizes = loss + curves.of(own), {**own, **sizes}
        if best is None or loss < best[0]:
            best = loss, sizes
    if best is None:
        raise error or ValueError(
            f'dropping {RATIOS[-1]:.0%} of the tokens at each place does not meet the budget '
            f'{budget}: prune other kinds too'
        )
    return best[1]
