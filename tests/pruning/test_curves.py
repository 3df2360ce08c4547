"""The best sizes for a budget are those that trying out all of them finds."""

import functools
import itertools
import json

import pytest
import torch
import zoo

from mcf_mm.pruning import find_units, measure_costs
from mcf_mm.pruning.budget import check_reachable
from mcf_mm.pruning.curves import Curves, best_sizes, read_curves, scale_curves, unit_loss


@functools.cache
def measured():
    """Two blocks of heads 2, qk 4, v 4, inputs 8, hidden 8."""
    model = zoo.timm_vit(embed_dim=8, num_heads=2, mlp_ratio=1)
    x = torch.zeros(1, 3, 32, 32)
    units = find_units(model)
    return units, measure_costs(model, lambda model: model(x), units)


def convex(units, kinds, seed, power=0.0):
    """Random curves that rise more and more."""
    generator = torch.Generator().manual_seed(seed)
    loss = {}
    for unit in units:
        for kind in (kind for kind in unit.kinds if kind in kinds):
            size = unit.sizes[kind]
            steps = torch.rand(size, generator=generator, dtype=torch.double).sort().values
            steps = steps + power * torch.arange(size)
            curve = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
            loss.setdefault(unit.name, {})[kind] = curve.tolist()
    return Curves(loss, {'seed': seed})


def between(costs, units, kinds, share, floors=None, what='params'):
    """A budget that keeps a share of what pruning some kinds can save."""
    least = {u.name: {k: (floors or {}).get(k, 1) for k in u.kinds if k in kinds} for u in units}
    low, dense = costs.of(least)[what], costs.of({})[what]
    return {what: round(low + share * (dense - low))}


def all_best(units, costs, curves, what, wanted):
    """Least loss of all combinations within the budget."""
    names = [(name, kind) for name, own in curves.loss.items() for kind in own]
    least = float('inf')
    full = units.by_name
    for sizes in itertools.product(*(range(1, full[n].sizes[k] + 1) for n, k in names)):
        policy = {}
        for (name, kind), size in zip(names, sizes, strict=True):
            policy.setdefault(name, {})[kind] = size
        loss = curves.of(policy)
        if loss < least and costs.of(policy)[what] <= wanted:
            least = loss
    return least


@pytest.mark.parametrize('kinds', [['hidden'], ['qk', 'v'], ['v', 'qk', 'hidden']], ids=str)
def test_best_sizes_are_those_of_all_combinations(kinds):
    units, costs = measured()
    if len(kinds) == 3:  # one block is enough to try out
        units = type(units)(units[:2])
    dense = costs.of({})
    floor = costs.of({u.name: {k: 1 for k in u.kinds if k in kinds} for u in units})
    for seed, share, what in itertools.product(range(3), (0.25, 0.5, 0.8), ('params', 'macs')):
        curves = convex(units, kinds, seed)
        wanted = round(floor[what] + share * (dense[what] - floor[what]))
        sizes = best_sizes(units, costs, curves, {what: wanted})
        spent = costs.of(sizes)[what]
        assert spent <= wanted
        for name, own in sizes.items():
            for kind, size in own.items():
                if size < units.by_name[name].sizes[kind]:
                    more = {**sizes, name: {**own, kind: size + 1}}
                    assert costs.of(more)[what] > wanted
        least = all_best(units, costs, curves, what, wanted)
        # Elements of equal price: the best. Of unequal ones the last may not fit.
        largest = max(b - a for own in curves.loss.values() for c in own.values() for a, b in
                      itertools.pairwise(c))  # fmt: skip
        hair = 1e-9 if kinds == ['hidden'] else 0.5 * largest
        assert least - 1e-9 <= curves.of(sizes) <= least + hair


def test_larger_budgets_lose_less_and_keep_more():
    units, costs = measured()
    curves = convex(units, ['qk', 'v', 'hidden'], 7)
    losses, spent = [], []
    for share in range(1, 21):
        budget = between(costs, units, curves.kinds, share / 20, what='macs')
        sizes = best_sizes(units, costs, curves, budget)
        losses.append(curves.of(sizes))
        spent.append(costs.of(sizes)['macs'])
    assert spent == sorted(spent)
    assert all(a >= b - 0.2 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0]
    assert losses[-1] == 0  # all of it


def test_curves_that_are_not_convex_and_flat_ones_are_served_too():
    units, costs = measured()
    for curve in ([0, 5, 5, 5, 5, 5, 5, 6, 9], [0] * 9, [0, 0, 0, 0, 9, 9, 9, 9, 9]):
        curves = Curves({unit.name: dict(hidden=list(map(float, curve))) for unit in units.ffns})
        budget = between(costs, units, ['hidden'], 0.4)
        sizes = best_sizes(units, costs, curves, budget)
        assert costs.of(sizes)['params'] <= budget['params']


def test_heads_that_go_take_the_loss_of_their_channels_along():
    units, costs = measured()
    units = type(units)(units.attentions[:1])  # few enough to try out
    name = units[0].name
    curves = convex(units, ['heads', 'qk', 'v'], 3)
    assert curves.of({name: dict(heads=2, qk=1, v=2)}) == pytest.approx(
        curves.loss[name]['qk'][3] + curves.loss[name]['v'][2]
    )
    assert curves.of({name: dict(heads=1, qk=1)}) == pytest.approx(
        curves.loss[name]['heads'][1] + curves.loss[name]['qk'][3] / 2
    )
    assert curves.of({name: dict(qk=1)}) == curves.loss[name]['qk'][3]
    for seed, share in itertools.product(range(4), (0.1, 0.3, 0.5, 0.7, 0.9)):
        curves = convex(units, ['heads', 'qk', 'v'], seed)
        budget = between(costs, units, curves.kinds, share)
        sizes = best_sizes(units, costs, curves, budget)
        assert costs.of(sizes)['params'] <= budget['params']
        # As good as the best within less of a budget: the last elements may not fit.
        less = budget['params'] - 60
        least = all_best(units, costs, curves, 'params', budget['params'])
        smaller = all_best(units, costs, curves, 'params', less)
        assert least - 1e-9 <= curves.of(sizes) <= smaller + 1e-9


def test_the_loss_of_a_policy_is_that_by_which_sizes_are_chosen():
    units, _ = measured()
    curves = convex(units, ['heads', 'qk', 'v', 'hidden'], 5)
    for name, own in curves.loss.items():
        full = units.by_name[name].sizes
        every = list(itertools.product(*(range(1, full[kind] + 1) for kind in own)))
        sizes = dict(zip(own, torch.tensor(every).T, strict=True))
        tensors = {kind: torch.tensor(curve, dtype=torch.double) for kind, curve in own.items()}
        found = unit_loss(tensors, sizes).tolist()
        for numbers, loss in zip(every, found, strict=True):
            policy = {name: dict(zip(own, numbers, strict=True))}
            assert curves.of(policy) == pytest.approx(loss, rel=1e-12)


def test_floors_hold():
    units, costs = measured()
    floors = dict(qk=3, hidden=5)
    curves = convex(units, ['qk', 'hidden'], 1)
    budget = between(costs, units, floors, 0.1, floors)
    sizes = best_sizes(units, costs, curves, budget, floors)
    assert all(size >= floors[kind] for own in sizes.values() for kind, size in own.items())
    with pytest.raises(ValueError, match='is the least that pruning hidden to 5, qk to 3 leaves'):
        best_sizes(units, costs, curves, between(costs, units, floors, -0.01, floors), floors)


def test_a_budget_is_reachable_or_the_least_is_told():
    units, costs = measured()
    kinds = {unit.name: ['hidden'] for unit in units.ffns}
    least = costs.of({name: dict(hidden=2) for name in kinds})['params']
    check_reachable(units, costs, ('params', least), kinds, dict(hidden=2))
    message = f'budget of {least - 1:,} params: {least:,} is the least that pruning hidden to 2'
    with pytest.raises(ValueError, match=message):
        check_reachable(units, costs, ('params', least - 1), kinds, dict(hidden=2))


def test_curves_in_a_file_are_the_same_curves(tmp_path):
    units, _ = measured()
    curves = convex(units, ['qk', 'hidden'], 2)
    path = tmp_path / 'curves.json'
    path.write_text(curves.to_json())
    again = read_curves(path)
    assert again == curves and again.facts == dict(seed=2)
    assert again.kinds == ['hidden', 'qk']
    assert again.only(['qk']).kinds == ['qk'] and again.only(['qk']).facts == again.facts
    again.check(units, 'it')


def test_curves_of_another_network_or_kind_are_refused():
    units, costs = measured()
    for loss, message in (
        (
            {'blocks.9.mlp': dict(hidden=[0, 1])},
            r'1 hidden of blocks\.9\.mlp, this one has no such',
        ),
        ({'blocks.0.mlp': dict(hidden=[0, 1])}, r'1 hidden of blocks\.0\.mlp, this one has 8'),
        ({'blocks.0.mlp': dict(v=[0, 1])}, r'1 v of blocks\.0\.mlp, this one has no such'),
    ):
        with pytest.raises(ValueError, match=rf'it is of another network: it has {message}'):
            Curves(loss).check(units, 'it')
        with pytest.raises(ValueError, match=rf'is of another network: it has {message}'):
            best_sizes(units, costs, Curves(loss), 'params=90%')
    with pytest.raises(ValueError, match=r"no cost curves of \['v'\], only of \['hidden'\]"):
        convex(units, ['hidden'], 0).only(['hidden', 'v'])


@pytest.mark.parametrize(
    'content', ['', '{"loss":', '[]', '{}', '{"loss": []}', '{"loss": {"a": {"hidden": ["x"]}}}']
)
def test_a_file_that_has_no_curves_is_named(content, tmp_path):
    path = tmp_path / 'curves.json'
    with pytest.raises(FileNotFoundError, match=r'no file of cost curves .*curves\.json'):
        read_curves(path)
    path.write_text(content)
    with pytest.raises(ValueError, match=r'curves\.json has no cost curves, \{"loss": '):
        read_curves(path)


@pytest.mark.parametrize(
    'curve, reason',
    [
        ('[]', 'is empty'),
        ('[0, NaN, 1]', 'is nan at 1'),
        ('[0, 1, Infinity]', 'is inf at 2'),
        ('[0, -Infinity]', 'is -inf at 1'),
        ('[-1, 0, 1]', r'begins at -1\.0'),
        ('[1, 2]', r'begins at 1\.0'),
        ('[0, -1, 2]', r'falls from 0\.0 to -1\.0 at 1'),
        ('[0, 2, 1.5, 3]', r'falls from 2\.0 to 1\.5 at 2'),
    ],
)
def test_a_curve_that_cannot_be_is_named(curve, reason, tmp_path):
    path = tmp_path / 'curves.json'
    path.write_text(f'{{"loss": {{"a": {{"v": [0, 0, 2], "hidden": {curve}}}}}}}')
    with pytest.raises(ValueError, match=rf'curves\.json: .* of hidden of a {reason}; it must be'):
        read_curves(path)


def test_measured_curves_have_one_factor_each():
    units, _ = measured()
    curves = convex(units, ['qk', 'hidden'], 2)
    factors = dict(zip([u.name for u in units], (2.0, 3.0, 8.0, 12.0), strict=True))

    def measure(sizes):
        ((name, _),) = sizes.items()
        return factors[name] * curves.of(sizes)

    # Where the prediction for the measured images is half of that for others, so is the factor.
    fitted = convex(units, ['qk', 'hidden'], 2)
    for kinds in fitted.loss.values():
        kinds.update({kind: [value / 2 for value in curve] for kind, curve in kinds.items()})
    for share, known in ((1, None), (2, fitted)):
        scaled = scale_curves(curves, measure, known)
        for name, factor in factors.items():
            for kind, curve in scaled.loss[name].items():
                expected = torch.tensor(curves.loss[name][kind]) * factor * share
                torch.testing.assert_close(torch.tensor(curve), expected)
    assert json.loads(scaled.to_json())['facts']['curves'] == 'measured'
