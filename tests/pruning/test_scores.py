"""Learnable scores: what they do to a network, what is kept by them, what they learn."""

import copy
import math

import pytest
import torch
import zoo
from torch.utils.checkpoint import checkpoint

from mcf_mm.pruning import Seen, cut, find_units, mask
from mcf_mm.pruning.scores import (
    FLOORS,
    KINDS,
    Scores,
    fold_as,
    learnable,
    penalty,
    searched_sizes,
)


def spread(units, kinds=KINDS):
    """Scores that are unlike, some of them negative."""
    gates = learnable(units, kinds)
    generator = torch.Generator().manual_seed(3)
    for score in gates.values.values():
        signs = torch.rand(score.shape, generator=generator).sub(0.1).sign()
        score.data.copy_(signs * (0.3 + torch.rand(score.shape, generator=generator)))
    return gates


NAMES = ['mmpretrain VisionTransformer', 'mmpretrain SwinTransformer', 'timm ViT']


@pytest.mark.parametrize('name', NAMES)
def test_a_cut_network_is_the_gated_one_with_gates_of_zero(name):
    model, x = zoo.network(name), zoo.images(name)
    units = find_units(model)
    gates = spread(units)
    values = {key: score.detach().clone() for key, score in gates.values.items()}
    sizes = searched_sizes(units, values, dict.fromkeys(KINDS, 0.4))
    structure = Scores(values).select(units, sizes, Seen({}))
    with torch.no_grad():
        with gates:
            gated = zoo.outputs(model, x)
            with mask(units, structure):
                masked = zoo.outputs(model, x)
        gates.fold()
        torch.testing.assert_close(zoo.outputs(model, x), gated, atol=1e-5, rtol=0)
        cut(model, structure)
        torch.testing.assert_close(zoo.outputs(model, x), masked, atol=1e-5, rtol=0)
    assert all((score == 1).all() for score in gates.values.values())


@pytest.mark.parametrize('ratio', [0.2, 0.4])
@pytest.mark.parametrize('name', NAMES)
def test_one_threshold_drops_the_share_of_each_kind(name, ratio):
    units = find_units(zoo.network(name))
    values = {key: score.detach() for key, score in spread(units).values.items()}
    sizes = searched_sizes(units, values, dict.fromkeys(KINDS, ratio))
    for kind in KINDS:
        own = [unit for unit in units if kind in unit.kinds]
        full = sum(unit.count(kind) for unit in own)
        kept = sum(sizes[unit.name][kind] * unit.groups(kind) for unit in own)
        # Half an element is rounded in each layer; of q/k and v in each of its heads.
        rounding = 1 + sum(unit.groups(kind) / 2 for unit in own)
        assert abs(kept - math.floor(full * (1 - ratio))) <= rounding
    # And every layer keeps what is above the threshold, to that rounding.
    for kind in KINDS:
        every = torch.cat([value.abs() for (_, own), value in values.items() if own == kind])
        limit = every.sort().values[len(every) - math.floor(len(every) * (1 - ratio))]
        for unit in units:
            if kind in unit.kinds:
                above = int((values[unit.name, kind].abs() >= limit).sum()) / unit.groups(kind)
                least = min(unit.sizes[kind], max(FLOORS[kind], above))
                assert abs(sizes[unit.name][kind] - least) <= 0.5 + 1e-6


def test_floors_hold(transformer):
    units = find_units(transformer)
    gates = learnable(units, KINDS)
    for (name, _), score in gates.values.items():
        if name.startswith('blocks.0'):
            score.data.mul_(1e-3)
    values = {key: score.detach() for key, score in gates.values.items()}
    sizes = searched_sizes(units, values, dict.fromkeys(KINDS, 0.5))
    assert sizes['blocks.0.attn'] == dict(qk=1, v=1)
    assert sizes['blocks.0.mlp'] == dict(inputs=1, hidden=8)
    assert sizes['blocks.1.attn'] == dict(qk=4, v=4)
    assert sizes['blocks.1.mlp'] == dict(inputs=12, hidden=20)
    structure = Scores(values).select(units, sizes, Seen({}))
    assert len(structure['blocks.0.attn']['qk']) == 3  # one for each head


def test_signs_do_not_count(transformer):
    units = find_units(transformer)
    values = {key: score.detach() for key, score in spread(units).values.items()}
    turned = {key: -value for key, value in values.items()}
    ratios = dict.fromkeys(KINDS, 0.4)
    assert searched_sizes(units, values, ratios) == searched_sizes(units, turned, ratios)


def test_the_penalty_is_the_sum_of_sizes(transformer):
    gates = spread(find_units(transformer))
    penalty(gates).backward()
    total = sum(float(score.detach().abs().sum()) for score in gates.values.values())
    assert float(penalty(gates)) == pytest.approx(total)
    for score in gates.values.values():
        assert torch.equal(score.grad, score.detach().sign())


@pytest.mark.parametrize('kind', ['qk', 'v', 'hidden', 'inputs'])
def test_a_useless_dimension_goes_first_and_a_vital_one_last(transformer, kind):
    units = find_units(transformer)
    unit = next(unit for unit in units if kind in unit.kinds)
    useless, vital = 2, 7
    with torch.no_grad():
        for axis in unit.axes(kind):
            parameter = unit.parameter(axis.parameter)
            entries = parameter.narrow(axis.dim, axis.offset, unit.count(kind))
            entries.select(axis.dim, useless).zero_()
            entries.select(axis.dim, vital).mul_(3)
        if kind == 'hidden':
            unit.fc1.bias[vital] = 2  # or GELU might switch it off
        x = torch.randn(64, 6, 12, dtype=torch.double)
        target = transformer(x)  # what it is to go on computing
    gates = learnable([unit], [kind])
    score = gates.values[unit.name, kind]
    optimizer = torch.optim.Adam(
        [
            dict(params=transformer.parameters(), lr=1e-4),
            dict(params=gates.values.values(), lr=1e-2),
        ]
    )
    with gates:
        for _ in range(40):
            optimizer.zero_grad()
            loss = (transformer(x) - target).square().mean() + 1e-2 * penalty(gates)
            loss.backward()
            optimizer.step()
    sizes = score.detach().abs()
    assert int(sizes.argmin()) == useless
    order = sizes.argsort().tolist()
    assert vital in order[-3:], order
    # The one that nothing needs goes straight down, forty steps of 0.01.
    assert float(sizes[useless]) < 0.65


def test_an_average_is_folded_with_the_same_numbers(transformer):
    average = copy.deepcopy(transformer)
    gates = spread(find_units(transformer))
    fold_as(gates, find_units(average))
    assert not all((score == 1).all() for score in gates.values.values())
    gates.fold()
    for ours, theirs in zip(transformer.parameters(), average.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_kinds_without_scores_are_refused(transformer):
    with pytest.raises(ValueError, match=r"kinds must be of \['qk', .*\], got \['heads'\]"):
        learnable(find_units(transformer), ['heads', 'qk'])


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointed_activations_give_the_same_gradient(transformer, reentrant):
    gates = spread(find_units(transformer))
    x = torch.randn(2, 6, 12, dtype=torch.double, requires_grad=True)
    found = []
    with gates:
        for chunked in (False, True):
            y = x
            for block in transformer.blocks:
                y = checkpoint(block, y, use_reentrant=reentrant) if chunked else block(y)
            for score in gates.values.values():
                score.grad = None
            y.square().sum().backward()
            found.append([score.grad.clone() for score in gates.values.values()])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)
        assert first.abs().max() > 0
