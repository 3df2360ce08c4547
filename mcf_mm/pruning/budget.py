"""Budgets: what a network may cost, and the sizes that meet it to the last element."""

from collections.abc import Callable, Iterable, Mapping

from mcf_mm.pruning.costs import Costs
from mcf_mm.pruning.policy import FLOORS, uniform, without_tokens
from mcf_mm.pruning.structure import Sizes
from mcf_mm.pruning.token_units import token_flow
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import Units

#: What a budget can be of.
BUDGETS = ('params', 'macs', 'latency')
#: ``'macs=60%'`` or ``{'macs': 0.6}``, see :func:`parse_budget`.
Budget = str | Mapping[str, float]
#: Units of time that a budget may have, in seconds.
_TIMES = {'us': 1e-6, 'ms': 1e-3, 's': 1.0}


def budget_kind(budget: Budget) -> str:
    """What a budget is of: ``'params'``, ``'macs'``, ``'latency'``, or something unknown."""
    if isinstance(budget, str):
        return budget.partition('=')[0].strip()
    return next(iter(budget), '')


def parse_budget(budget: str | Mapping[str, float], costs: Costs) -> tuple[str, int | float]:
    """Read a budget.

    Args:
        budget: ``'params=3869416'``, ``'macs=60%'`` (of the dense network), or
            ``{'macs': 0.6e9}``; a number below 1 is a share. ``'latency=70%'`` or
            ``'latency=0.7'`` is a share of the dense network's time, ``'latency=12ms'`` (``s``,
            ``us``) the time itself.
        costs: Costs of the dense network; for ``latency`` with measured times.

    Returns:
        ``'params'``, ``'macs'`` or ``'latency'``, and how many (seconds of latency).

    Raises:
        ValueError: It is none of these, or there are no measured times.
    """
    text = budget
    asked: Mapping[str, str | float]
    if isinstance(budget, str):
        name, found, told = budget.partition('=')
        asked = {name.strip(): told.strip()} if found else {}
    else:
        asked = budget
    if len(asked) != 1 or not set(asked) <= set(BUDGETS):
        raise ValueError(
            f"budget must be 'params=N' or 'macs=N' or a share, N%, got {text!r}; with measured "
            "times also 'latency=N%'"
        )
    ((what, value),) = asked.items()
    unit = None
    if isinstance(value, str):
        units = ('%', *_TIMES) if what == 'latency' else ('%',)
        unit = next((ending for ending in units if value.endswith(ending)), None)
        value = value[: len(value) - len(unit or '')]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f'budget must be a number, got {text!r}') from None
    if not 0 < number < float('inf'):
        raise ValueError(f'budget must be positive, got {text!r}')
    number = number / 100 if unit == '%' else number
    dense = costs.of({})
    if what not in dense:
        raise ValueError(
            f'budget {text!r} needs measured times: set costs.latency to those of '
            'mcf_mm.search.measure_latency(model, forward) or read_latency(file)'
        )
    if what != 'latency':
        share = unit == '%' or number < 1
        return what, round(number * dense[what]) if share else round(number)
    if unit in _TIMES:
        return what, number * _TIMES[unit]
    if unit is None and number > 1:
        raise ValueError(
            f'budget of latency must be a share of the dense time up to 1, N%, or a time such as '
            f"'latency=12ms', got {text!r}"
        )
    return what, number * dense[what]


def within_budget(
    units: Units,
    costs: Costs,
    budget: str | Mapping[str, float],
    shape: Callable[[float], Sizes] | Iterable[str],
    floors: Mapping[str, int] | None = None,
) -> dict[str, dict[str, int]]:
    """Meet a budget exactly: not above it, and no single element more would fit.

    Measured times need not fall with the sizes; a budget of latency is met by what they predict.

    Args:
        units: Units of a network.
        costs: Its costs, see :func:`~mcf_mm.pruning.costs.measure_costs`.
        budget: See :func:`parse_budget`.
        shape: Sizes for a strength in [0, 1], not growing with it: 0 keeps all. Or kinds, of which
            each unit drops the same share.
        floors: Fewest elements by kind. Defaults to 1 of each.

    Raises:
        ValueError: No strength meets the budget; the message says the smallest cost and which
            kinds limit it.
    """
    what, wanted = parse_budget(budget, costs)
    floors = {**FLOORS, **(floors or {})}
    if not callable(shape):
        kinds = list(shape)

        def shape(strength: float) -> Sizes:
            ratios = dict.fromkeys(kinds, min(strength, 1 - 1e-9))
            return uniform(units, ratios)

    names = units.by_name

    def bounded(strength: float) -> dict[str, dict[str, int]]:
        return {
            name: {
                kind: min(names[name].sizes[kind], max(_floor(names[name], kind, floors), size))
                for kind, size in kinds.items()
            }
            for name, kinds in shape(strength).items()
        }

    low, high = 0.0, 1.0  # low costs too much, high fits
    _check_smallest(costs, bounded(1.0), what, wanted)
    if costs.of(bounded(0.0))[what] <= wanted:
        return bounded(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        if costs.of(bounded(middle))[what] > wanted:
            low = middle
        else:
            high = middle
    return _fill(bounded(high), bounded(low), units, costs, what, wanted)


def check_reachable(
    units: Units,
    costs: Costs,
    budget: tuple[str, float],
    kinds: Mapping[str, Iterable[str]],
    floors: Mapping[str, int] | None = None,
) -> None:
    """Check that pruning some kinds down to their floors meets a budget.

    Args:
        units: Units of a network.
        costs: Its costs.
        budget: What :func:`parse_budget` gave.
        kinds: Kinds that may be pruned, by unit.
        floors: Fewest elements by kind. Defaults to 1 of each.

    Raises:
        ValueError: It does not; the message says the smallest cost and which kinds limit it.
    """
    floors = {**FLOORS, **(floors or {})}
    names = units.by_name
    least = {
        name: {
            kind: min(names[name].sizes[kind], _floor(names[name], kind, floors)) for kind in own
        }
        for name, own in kinds.items()
    }
    _check_smallest(costs, least, *budget)


def _floor(unit: Unit, kind: str, floors: Mapping[str, int]) -> int:
    return max(floors[kind], unit.fewest(kind))


def _check_smallest(costs: Costs, least: Sizes, what: str, wanted: float) -> None:
    smallest = costs.of(least)[what]
    if smallest > wanted:
        limits = sorted({f'{kind} to {n}' for own in least.values() for kind, n in own.items()})
        raise ValueError(
            f'no policy meets the budget of {told_cost(wanted)} {what}: {told_cost(smallest)} is '
            f'the least that pruning {", ".join(limits)} leaves; prune more kinds or take a larger '
            'budget'
        )


def told_cost(cost: int | float) -> str:
    """A cost in words; seconds in milliseconds."""
    return f'{1e3 * cost:,.3f} ms' if isinstance(cost, float) else f'{cost:,}'


def _fill(
    sizes: dict[str, dict[str, int]],
    above: Sizes,
    units: Units,
    costs: Costs,
    what: str,
    wanted: int | float,
) -> dict[str, dict[str, int]]:
    """Add single elements while one fits, those first that the next smaller strength keeps.

    Tokens stay as they are where there are other kinds: one ratio has chosen them.
    """
    kinds_there = {kind for kinds in sizes.values() for kind in kinds}
    if kinds_there == {'tokens'}:
        return _fill_tokens(sizes, units, costs, what, wanted)
    index = BUDGETS.index(what)
    if isinstance(wanted, float):
        wanted *= 1 - 1e-9  # sums of seconds are rounded
    full = units.by_name
    costs = costs.with_tokens(sizes)
    sizes, tokens = without_tokens(sizes), sizes
    spent = costs.of(sizes)[what]
    current = {name: {**full[name].sizes, **kinds} for name, kinds in sizes.items()}
    for limit in (above, {name: full[name].sizes for name in sizes}):
        grown = True
        while grown:
            grown = False
            for name, kinds in sizes.items():
                for kind in kinds:
                    if kinds[kind] >= limit[name][kind]:
                        continue
                    before = costs.of_unit(name, current[name])[index]
                    more = {**current[name], kind: kinds[kind] + 1}
                    extra = costs.of_unit(name, more)[index] - before
                    if spent + extra <= wanted:
                        kinds[kind] += 1
                        current[name] = more
                        spent += extra
                        grown = True
    for name, kinds in tokens.items():
        if 'tokens' in kinds:
            sizes[name] = {'tokens': kinds['tokens']}
    return sizes


def _fill_tokens(
    sizes: dict[str, dict[str, int]], units: Units, costs: Costs, what: str, wanted: int | float
) -> dict[str, dict[str, int]]:
    """Add single tokens while one fits, at the last place first, where they cost least."""
    grown = True
    while grown:
        grown = False
        for name in reversed(sizes):
            more = {**sizes, name: {'tokens': sizes[name]['tokens'] + 1}}
            arriving, _ = token_flow(units, sizes)[name]
            if more[name]['tokens'] <= arriving and costs.of(more)[what] <= wanted:
                sizes, grown = more, True
    return sizes
