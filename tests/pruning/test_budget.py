"""Pruning to a budget in one call: the cost is what was promised, the network is close to dense."""

import copy
import functools

import pytest
import torch
import zoo
from torch import nn

from mcf_mm.pruning import calibrate, find_units, measure_costs, prune
from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.criteria import OBS
from mcf_mm.pruning.curves import Curves


@functools.cache
def wide(name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.moved(zoo.WIDE[name]())


def fresh(name: str = 'timm') -> nn.Module:
    return copy.deepcopy(wide(name))


def counted(model):
    x = torch.zeros(1, 3, 32, 32)
    return measure_costs(model, lambda model: zoo.outputs(model, x))


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(v, after[k]) for k, v in before.items()
    )


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(3)]


@pytest.mark.parametrize('budget', ['macs=60%', 'params=66%'])
@pytest.mark.parametrize('name', zoo.WIDE)
def test_a_budget_is_met_to_the_last_element_and_keeps_more_than_magnitude(name, budget, images):
    model, dense, plain = fresh(name), wide(name), fresh(name)
    costs = counted(dense)
    what, share = budget.split('=')
    wanted = round(costs.of({})[what] * int(share[:-1]) / 100)
    structure = prune(model, iter(images), budget=budget, forward=lambda x: zoo.outputs(model, x))
    found = counted(model).of({})
    assert found == costs.of(structure.sizes) and found[what] <= wanted
    assert found['params'] == sum(p.numel() for p in model.parameters())
    for unit in find_units(dense):
        for kind in OBS.budget_kinds & set(unit.kinds):
            size = structure.sizes[unit.name][kind]
            assert size >= min(unit.sizes[kind], OBS.floors[kind])
            if size < unit.sizes[kind]:  # no single element more would fit
                own = {**structure.sizes[unit.name], kind: size + 1}
                assert costs.of({**structure.sizes, unit.name: own})[what] > wanted
    assert {kind for own in structure.sizes.values() for kind in own} == set(OBS.budget_kinds)
    prune(
        plain, images, 'magnitude', sizes=structure.sizes, forward=lambda x: zoo.outputs(plain, x)
    )
    fresh_images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, *found = (zoo.outputs(m, fresh_images) for m in (dense, model, plain))
    errors = [float((out - expected).square().mean()) for out in found]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize('criterion', ['magnitude', 'mcf', 'activation'])
def test_other_criteria_drop_the_same_share_of_each_unit(criterion, images):
    model, costs = fresh(), counted(wide('timm'))
    structure = prune(model, images, criterion, budget='params=70%')
    found = counted(model).of({})
    assert found == costs.of(structure.sizes)
    assert found['params'] <= round(0.7 * costs.of({})['params'])
    first, second = structure.sizes.values()
    assert set(first) == {'inputs', 'hidden'}
    assert all(abs(first[kind] - second[kind]) <= 1 for kind in first)


@pytest.mark.parametrize('kinds', [['qk'], ['v', 'inputs'], ['heads', 'v']], ids=str)
def test_kinds_that_are_named_are_the_ones_that_are_pruned(kinds, images):
    model, dense = fresh(), wide('timm')
    structure = prune(model, images, budget='macs=93%', kinds=kinds)
    full = find_units(dense).sizes
    smaller = {
        kind
        for name, own in find_units(model).sizes.items()
        for kind, size in own.items()
        if size < full[name][kind]
    }
    assert smaller and smaller <= set(kinds)
    assert counted(model).of({}) == counted(dense).of(structure.sizes)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('metric', ['fisher', 'plain'])
def test_ratios_serve_the_closed_form_too(metric, images):
    model, errors = fresh(), []
    ratios = dict(heads=0.3, qk=0.3, v=0.3, hidden=0.3, inputs=0.1)
    structure = prune(model, images, dict(type='obs', metric=metric), ratios)
    plain = fresh()
    prune(plain, images, 'magnitude', sizes=structure.sizes)
    assert structure.sizes['blocks.0.attn'] == dict(heads=2, qk=11, v=11)
    with torch.no_grad():
        expected = wide('timm')(images[0])
        errors = [float((m(images[0]) - expected).square().mean()) for m in (model, plain)]
    assert errors[0] < errors[1]


def test_the_metric_must_be_one_that_there_is():
    with pytest.raises(ValueError, match="metric must be 'fisher' or 'plain', got 'hessian'"):
        OBS('hessian')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(budget='macs=5%'), r'no policy meets .* macs: [\d,]+ is the least .*hidden to 16.*'),
        (dict(budget='macs=60%', kinds=['qk']), r'[\d,]+ is the least that pruning qk to 8 leaves'),
        (
            dict(budget='params=100%'),
            r'meets the budget params=100% as it is: [\d,]+ params',
        ),
        (dict(budget='params=0.6', kinds=['qk', 'depth']), r"kinds names \['depth'\], the network"),
        (dict(budget='params=0.6', ratios=0.4), 'give one of budget, ratios and sizes'),
        (dict(budget='params=0.6', sizes={}), 'give one of budget, ratios and sizes'),
        (dict(budget='macs=0.6', multiple=8), 'multiple must be 1, got 8'),
        (dict(budget='flops=0.6'), r"budget must be 'params=N' or 'macs=N'.*got 'flops=0.6'"),
        (dict(budget='macs=-1'), "budget must be positive, got 'macs=-1'"),
        (dict(budget='macs=half'), "budget must be a number, got 'macs=half'"),
        (dict(budget='macs=60%', compensation='ls'), r"compensation must be one of .*got 'ls'"),
        (dict(budget='macs=60%', batches=[]), r'there are no images \(batches is empty\)'),
        (dict(budget='macs=60%', batches=[dict(x=1)]), r'give costs=measure_costs\(\.\.\.\)'),
        (
            dict(budget='macs=80%', criterion='magnitude', curves=Curves({})),
            "cost curves are of the criterion 'obs', got",
        ),
        (
            dict(budget='macs=80%', curves=Curves({'blocks.0.mlp': dict(hidden=[0.0, 1.0])})),
            r"no cost curves of \['heads', 'inputs', 'qk', 'v'\], only of \['hidden'\]",
        ),
        (
            dict(
                budget='macs=80%',
                kinds=['hidden'],
                curves=Curves({'blocks.7.mlp': dict(hidden=[0.0, 1.0])}),
            ),
            r'another network: it has 1 hidden of blocks\.7\.mlp, this one has no such unit',
        ),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_met_changes_nothing(arguments, message, images):
    model = fresh()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        prune(model, **{'batches': images, **arguments})
    assert unchanged(model, before)


def test_a_network_that_is_pruned_already_has_no_budget(images):
    model = fresh()
    prune(model, images, budget='macs=80%')
    before = state(model)
    with pytest.raises(ValueError, match='is pruned already, to .*start from the dense network'):
        prune(model, images, budget='macs=60%')
    assert unchanged(model, before)


def test_images_that_can_be_seen_only_once_are_no_use_to_sequential(images):
    model = fresh()
    before = state(model)
    with pytest.raises(ValueError, match='once for each layer: .*got list_iterator, which can be'):
        prune(model, iter(images), budget='macs=70%', compensation='sequential')
    units = find_units(model)
    observers = OBS().observers(units, units.sizes)
    seen = calibrate(model, images, observers, labels=OBS.labels)
    arguments = dict(seen=seen, costs=counted(model), budget='macs=70%')
    with pytest.raises(ValueError, match=r'there are no images \(batches is empty\)'):
        prune(model, compensation='sequential', **arguments)
    assert unchanged(model, before)
    with pytest.warns(UserWarning, match='sizes are chosen by predicted ones'):
        prune(model, **arguments)  # least squares needs none
    again, third = fresh(), fresh()
    prune(again, images, dict(type='obs', allocation='predicted'), budget='macs=70%')
    assert unchanged(again, model.state_dict())
    prune(again := fresh(), images, budget='macs=70%')
    prune(third, images, seen=seen, budget='macs=70%')  # measured on the same images
    assert unchanged(again, third.state_dict())


def test_an_earlier_calibration_of_something_else_is_named(images):
    model = fresh()
    with pytest.raises(KeyError, match='has not gathered MomentObserver'):
        prune(model, seen=Seen({}), costs=counted(model), budget='macs=95%', kinds=['v'])
