"""Cuts are measured as cutting a copy by hand would; the network itself stays as it is."""

import copy
import functools
import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
import zoo
from torch import nn

from mcf_mm.pruning import Seen, calibrate, find_units, measure_costs, prune
from mcf_mm.pruning.criteria import OBS
from mcf_mm.pruning.curves import LEAST, SHARES, scale_curves
from mcf_mm.pruning.measure import Kept, Probe

BUDGET = 'params=80%'


class Small(OBS):
    """Prunes small networks as well."""

    floors = dict(heads=1, qk=2, v=2, hidden=2, inputs=2)


@functools.cache
def built() -> nn.Module:
    drops = dict(drop_rate=0.3, attn_drop_rate=0.2, drop_path_rate=0.3)
    model = zoo.settled(zoo.timm_vit(mlp_ratio=2, **drops))
    model.head.weight.data *= 5  # losses far above those that count as nothing
    return model


@pytest.fixture
def model() -> nn.Module:
    return copy.deepcopy(built())


@pytest.fixture
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(number, 3, 32, 32, generator=generator) for number in (8, 8, 5)]


def observed(model, images, criterion) -> Seen:
    units = find_units(model)
    observers = criterion.observers(units, units.sizes)
    return calibrate(model, images, observers, labels=criterion.labels)


def divergence(dense, small, images) -> float:
    """Sum of ``p log(p / q)``, a mean over images."""
    total = 0.0
    with torch.no_grad():
        for image in torch.cat(images):
            p, q = (net(image[None])[0].double().softmax(0) for net in (dense, small))
            total += float((p * (p / q).log()).sum())
    return total / sum(map(len, images))


def cut_by_hand(model, images, sizes, seen, compensation='least_squares') -> float:
    small = copy.deepcopy(model)
    prune(small, criterion=Small(), sizes=sizes, seen=seen, compensation=compensation)
    return divergence(model, small, images)


def same(model, other) -> bool:
    own, others = model.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)


CUTS = [
    {'blocks.0.mlp': dict(hidden=20)},
    {'blocks.1.mlp': dict(inputs=12, hidden=30)},
    {'blocks.0.attn': dict(qk=4)},
    {'blocks.1.attn': dict(v=3)},
    {'blocks.0.attn': dict(heads=2)},
    {'blocks.1.attn': dict(heads=2, qk=5, v=5), 'blocks.0.mlp': dict(hidden=9)},
]


@pytest.mark.parametrize('compensation', ['least_squares', 'none'])
def test_a_measured_loss_is_that_of_a_copy_cut_by_hand(model, images, compensation):
    # In double precision: one of the losses is 6e-7 nats, where the rounding of single shows.
    model, images = model.double(), [batch.double() for batch in images]
    criterion = Small()
    seen = observed(model, images, criterion)
    probe = Probe(model, images, compensation=compensation)
    losses = [probe.loss(sizes, criterion, seen) for sizes in CUTS]
    for sizes, loss in zip(CUTS, losses, strict=True):
        expected = cut_by_hand(model, images, sizes, seen, compensation)
        assert loss == pytest.approx(expected, rel=1e-8, abs=0) and loss > 0
    # In whatever order, and again.
    assert [probe.loss(sizes, criterion, seen) for sizes in CUTS[::-1]] == losses[::-1]


def test_the_network_stays_as_it_is(model, images):
    criterion = Small()
    seen = observed(model, images, criterion)
    model.train()
    model.blocks[1].eval()
    before, modules = copy.deepcopy(model), dict(model.named_modules())
    parameters = dict(model.named_parameters())
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    probe = Probe(model, images)
    for sizes in CUTS:
        probe.loss(sizes, criterion, seen)
    # Also when a cut goes wrong.
    with pytest.raises(KeyError, match='has not gathered'):
        probe.loss(CUTS[2], Small(), Seen({}))
    assert same(model, before)
    assert all(part is modules[name] for name, part in model.named_modules())
    assert all(value is parameters[name] for name, value in model.named_parameters())
    for part, other in zip(model.modules(), before.modules(), strict=True):
        assert part.training == other.training and type(part) is type(other)
    assert hooks == [
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()
    ]


def test_dropout_is_off_while_cuts_are_measured_and_modes_are_restored(model, images):
    training = copy.deepcopy(model).train()
    training.blocks[0].eval()
    modes = [part.training for part in training.modules()]
    criteria = Small(), Small()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = prune(training, images, criteria[0], budget=BUDGET)
        torch.manual_seed(4)
        second = prune(model, images, criteria[1], budget=BUDGET)
    assert first.to_json() == second.to_json() and same(training, model)
    assert criteria[0].curves == criteria[1].curves
    assert criteria[0].curves.facts['curves'] == 'measured'
    assert [part.training for part in training.modules()] == modes


def test_each_curve_is_scaled_by_the_geometric_mean_of_measured_over_predicted(model, images):
    dense, criterion = copy.deepcopy(model), Small()
    units = find_units(dense)
    prune(model, images, criterion, budget=BUDGET)
    seen = observed(dense, images, Small())
    predicted = Small().predict_curves(units, units.sizes, seen)
    # Predicted for the images themselves: nothing is judged on others.
    own = {
        key: replace(result, halves=None) if hasattr(result, 'halves') else result
        for key, result in seen.results.items()
    }
    fitted = Small().predict_curves(units, units.sizes, Seen(own))
    assert list(criterion.curves.loss) == [unit.name for unit in units]
    losses = []
    for name, kinds in criterion.curves.loss.items():
        for kind, curve in kinds.items():
            full = units.by_name[name].sizes[kind]
            logs = []
            for share in SHARES:
                size = max(1, round(full * share))
                loss = cut_by_hand(dense, images, {name: {kind: size}}, seen)
                losses.append(loss)
                wanted = fitted.loss[name][kind][full - size]
                logs.append(math.log(max(loss, LEAST) / max(wanted, LEAST)))
            factor = math.exp(sum(logs) / len(SHARES))
            expected = torch.tensor(predicted.loss[name][kind]) * factor
            torch.testing.assert_close(torch.tensor(curve), expected, rtol=1e-3, atol=1e-9)
    assert len(losses) == 2 * criterion.curves.number
    assert sum(loss > LEAST for loss in losses) > 0.8 * len(losses)


def test_sizes_are_those_of_the_measured_curves(model, images):
    told, criterion, dense = [], Small(), copy.deepcopy(model)
    costs = measure_costs(dense, lambda model: model(images[0][:1]))
    structure = prune(
        model,
        images,
        criterion,
        budget=BUDGET,
        progress=lambda name, done, number: told.append((name, done, number)),
    )
    steps = [
        (name, done + 1, number)
        for name, number in (
            ('computing cost curves', criterion.curves.number),
            ('measuring cuts', len(SHARES) * criterion.curves.number),
        )
        for done in range(number)
    ]
    assert told == steps
    # From its own curves, without measuring anything.
    again = copy.deepcopy(dense)
    arguments = dict(curves=criterion.curves, costs=costs, budget=BUDGET)
    assert prune(again, images, Small(), **arguments).to_json() == structure.to_json()
    assert same(again, model)


def pruned(model, images, allocation, **more):
    """Also the warnings of the allocation."""
    criterion = Small('plain', allocation)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        structure = prune(model, images, criterion, budget=BUDGET, **more)
    told = [str(w.message) for w in caught if 'allocation' in str(w.message)]
    return structure, criterion, told


@pytest.mark.parametrize('lacks', ['images', 'classifier'])
def test_without_images_or_class_scores_sizes_are_predicted_and_a_warning_says_so(
    lacks, model, images
):
    more = {}
    if lacks == 'classifier':
        model.reset_classifier(0)
    else:
        more['seen'] = observed(model, images, Small('plain'))
        more['costs'] = measure_costs(model, lambda model: model(images[0][:1]))
        images = []
    assert not Probe(model, images).can_measure
    found = []
    for allocation in ('measured', 'predicted'):
        own = copy.deepcopy(model)
        structure, criterion, told = pruned(own, images, allocation, **more)
        assert len(told) == (allocation == 'measured')
        assert criterion.curves.facts == dict(curves='predicted')
        found.append((own, structure.to_json()))
    assert found[0][1] == found[1][1] and same(found[0][0], found[1][0])
    told = pruned(copy.deepcopy(model), images, 'measured', **more)[2]
    assert told == [
        'there are no class scores (or no images) to measure losses by: sizes are chosen by '
        "predicted ones (allocation='predicted')"
    ]


def test_a_loss_of_nothing_leaves_a_curve_that_is_finite(model):
    curves = Small().predict_curves([], {}, Seen({}))
    curves.loss['blocks.0.mlp'] = dict(hidden=[0.0, 0.0, 0.0])
    scaled = scale_curves(curves, lambda sizes: 0.0)
    assert scaled.loss == curves.loss


def test_the_first_batches_are_kept_until_they_have_enough_images():
    batches = [torch.zeros(number, 3) for number in (3, 4, 5, 6)]
    for images, number in ((1, 1), (3, 1), (4, 2), (7, 2), (8, 3), (100, 4)):
        for wrapped in (batches, [dict(inputs=batch) for batch in batches]):
            kept = Kept(wrapped, images)
            assert kept.first == [] and [*map(id, kept)] == [*map(id, wrapped)]
            assert [*map(id, kept.first)] == [*map(id, wrapped[:number])]
            stopped = Kept(iter(wrapped), images)
            stopped.keep()
            assert [*map(id, stopped.first)] == [*map(id, wrapped[:number])]
            assert len(list(itertools.islice(stopped.batches, 9))) == len(wrapped) - number
