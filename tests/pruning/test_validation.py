"""What is solved on one half is judged on the other: as plain data matrices say."""

import itertools

import numpy as np
import pytest
import torch
from networks import Transformer

from mcf_mm.pruning import calibrate, find_units
from mcf_mm.pruning.criteria import OBS
from mcf_mm.pruning.moments import Moments
from mcf_mm.pruning.pairs import Pairs
from mcf_mm.pruning.validation import (
    RIDGES,
    best_ridge,
    judge,
    judged_groups,
    judged_pairs,
    judged_removal,
    judged_values,
)

RIDGE = 1e-2  # of curves


class Half:
    """Inputs with a constant ``(N, I + 1)`` and gradients of the outputs ``(N, O)``."""

    def __init__(self, rng, mix, centre, samples, outputs):
        x = rng.normal(size=(samples, len(mix))) @ mix + centre
        x += 0.3 * rng.normal(size=x.shape)
        self.x = np.c_[x, np.ones(samples)]
        self.gradients = rng.normal(size=(samples, outputs)) * np.linspace(1, 2, outputs)
        self.felt = True

    @property
    def moments(self) -> Moments:
        second = torch.from_numpy(self.x.T @ self.x / len(self.x))
        metric = torch.from_numpy(self.gradients.T @ self.gradients)
        return Moments(second, metric if self.felt else None, len(self.x))

    def error(self, change) -> float:
        """Mean over the samples of ``d^T G d``, d the change of the output."""
        moved = self.x @ change.T
        felt = moved @ self.gradients.T if self.felt else moved
        return np.square(felt).sum() / len(self.x)


def problem(inputs=9, outputs=4, samples=30, seed=0, felt=True):
    """Two halves of one distribution; weights with bias."""
    rng = np.random.default_rng(seed)
    mix, centre = rng.normal(size=(inputs, inputs)), rng.normal(size=inputs)
    halves = [Half(rng, mix, centre, samples, outputs) for _ in range(2)]
    for half in halves:
        half.felt = felt
    weight = rng.normal(size=(outputs, inputs + 1))
    return halves, weight


def solution(x, weight, kept, ridge):
    """Weights ``(O, I + 1)`` with zeros where inputs are gone: least squares on samples.

    The ridge term is a sample of its own for each input.
    """
    share = ridge * np.square(x[:, :-1]).mean()
    samples = np.r_[x / np.sqrt(len(x)), np.sqrt(share) * np.eye(x.shape[1])[:-1]]
    kept = [*kept, x.shape[1] - 1]
    solved = np.linalg.lstsq(samples[:, kept], samples @ weight.T, rcond=None)[0]
    full = np.zeros_like(weight)
    full[:, kept] = solved.T
    return full


def greedy(half, weight, groups):
    """Which groups go first on a half of the images, and the error with the ridge term there."""
    x = half.x
    share = RIDGE * np.square(x[:, :-1]).mean()
    order, costs, alive = [], [0.0], list(range(len(groups)))
    while alive:
        errors = []
        for gone in alive:
            kept = [i for group in alive if group != gone for i in groups[group]]
            change = solution(x, weight, kept, RIDGE) - weight
            scale = half.gradients if half.felt else np.eye(len(weight))
            ridge = share * np.square(scale @ change[:, :-1]).sum()
            errors.append(half.error(change) + ridge)
        order.append(alive.pop(int(np.argmin(errors))))
        costs.append(min(errors))
    return order, np.array(costs)


def curve(cost, judged_at):
    """The shape of ``cost``, its height that of what was judged; never falling."""
    places = sorted(judged_at)
    ratios = [judged_at[place] / cost[place] for place in places]
    return np.maximum.accumulate(cost * np.interp(np.arange(len(cost)), places, ratios))


def close(found, expected, tolerance=1e-8):
    expected = torch.as_tensor(np.asarray(expected), dtype=torch.double)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-10)
    assert found[0] == 0 and bool((found.diff() >= 0).all())


@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
def test_a_solution_is_judged_by_the_error_on_the_images(felt):
    (one, other), weight = problem(felt=felt)
    for kept in ([0, 3, 4], [8], [], list(range(9))):
        full = solution(one.x, weight, kept, 0.1)
        solved = torch.from_numpy(full[:, [*kept, 9]])
        index = torch.tensor(kept, dtype=torch.long)
        for half in (one, other):
            found = judge(torch.from_numpy(weight), half.moments)(solved, index)
            assert found == pytest.approx(half.error(full - weight), rel=1e-9)


def test_the_best_ridge_term_is_the_one_that_is_best_on_the_other_half():
    found = set()
    for seed, samples in itertools.product(range(4), (6, 12, 200)):
        halves, weight = problem(inputs=12, samples=samples, seed=seed)
        kept = [0, 2, 3, 5, 7, 8, 10]
        errors = {
            ridge: sum(
                other.error(solution(one.x, weight, kept, ridge) - weight)
                for one, other in (halves, halves[::-1])
            )
            for ridge in RIDGES
        }
        moments = tuple(half.moments for half in halves)
        ridge = best_ridge(torch.from_numpy(weight), moments, torch.tensor(kept))
        assert ridge == min(errors, key=errors.get)
        found.add(ridge)
    assert len(found) > 2


@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
def test_removal_is_judged_on_the_half_that_it_was_not_chosen_on(felt):
    inputs = 40  # of which the first 32 go in one panel
    halves, weight = problem(inputs, samples=60, felt=felt)
    one, other = halves
    order, costs = greedy(one, weight, [[i] for i in range(inputs)])
    judged_at = {}
    for number in (32, inputs):
        full = solution(one.x, weight, sorted(order[number:]), RIDGE)
        judged_at[number] = other.error(full - weight)
    moments = one.moments, other.moments
    removal, found = judged_removal(torch.from_numpy(weight), moments)
    assert removal.order.tolist() == order
    close(removal.cost, costs)
    close(found, curve(costs, judged_at))


@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
@pytest.mark.parametrize('groups', [2, 3, 6])
def test_groups_are_judged_on_the_half_that_they_were_not_chosen_on(groups, felt):
    (one, other), weight = problem(12, samples=40, seed=groups, felt=felt)
    parts = np.arange(12).reshape(groups, -1).tolist()
    order, costs = greedy(one, weight, parts)
    judged_at = {}
    for number in range(1, groups):
        kept = sorted(i for group in order[number:] for i in parts[group])
        judged_at[number] = other.error(solution(one.x, weight, kept, RIDGE) - weight)
    found = judged_groups(torch.from_numpy(weight), (one.moments, other.moments), groups)
    close(found, curve(costs, judged_at))


def test_a_single_group_has_nothing_to_be_judged_by():
    (one, other), weight = problem(4)
    found = judged_groups(torch.from_numpy(weight), (one.moments, other.moments), 1)
    close(found, greedy(one, weight, [[0, 1, 2, 3]])[1])


def powers(matrix):
    """Square root of a symmetric matrix and its inverse."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
@pytest.mark.parametrize('heads', [1, 2, 3])
def test_value_channels_are_judged_in_the_basis_of_the_other_half(heads, felt):
    channels = 5
    (one, other), weight = problem(heads * channels, samples=50, seed=heads, felt=felt)
    cost, blocks = np.zeros(channels + 1), []
    gram = one.gradients.T @ one.gradients if felt else np.eye(len(weight))
    for head in range(heads):
        own = slice(head * channels, (head + 1) * channels)
        covariance = np.cov(one.x[:, own].T, bias=True)
        half, inverse = powers(covariance / np.diag(covariance).mean())
        _, values, right = np.linalg.svd(powers(gram)[0] @ weight[:, own] @ half)
        blocks.append(right @ inverse)
        values = np.r_[values, np.zeros(channels - len(values))]
        tails = np.cumsum(np.square(values)[::-1]) * np.diag(covariance).mean()
        cost += np.r_[0, tails]
    into = np.zeros((weight.shape[1], weight.shape[1]))
    for head, block in enumerate(blocks):
        own = slice(head * channels, (head + 1) * channels)
        into[own, own] = block
    into[-1, -1] = 1
    turned = weight @ np.linalg.inv(into)
    one_turned, other_turned = (half.x @ into.T for half in (one, other))
    judged_at = {}
    for number in range(1, channels + 1):
        kept = [head * channels + i for head in range(heads) for i in range(channels - number)]
        change = (solution(one_turned, turned, kept, RIDGE) - turned) @ into
        if cost[number] > 1e-12:
            judged_at[number] = other.error(change)
    np.testing.assert_allclose(other_turned @ turned.T, other.x @ weight.T)
    found = judged_values(torch.from_numpy(weight), (one.moments, other.moments), heads)
    close(found, curve(cost, judged_at), 1e-6)


def test_query_and_key_channels_are_judged_by_the_products_of_the_other_half():
    rng = np.random.default_rng(0)
    heads, channels, samples = 2, 5, 20
    mix = rng.normal(size=(2, heads, channels, channels))
    # Of each half: query and key of each head, (2, heads, N, d).
    data = [rng.normal(size=(2, heads, samples, channels)) @ mix for _ in range(2)]
    halves = []
    for half in data:
        second = torch.from_numpy(half.swapaxes(2, 3) @ half / samples)
        halves.append(Pairs(second[0], second[1]))
    expected = np.zeros(channels + 1)
    for head in range(heads):
        query, key = (powers(part[head].T @ part[head] / samples) for part in data[0])
        left, values, right = np.linalg.svd(query[0] @ key[0])
        for number in range(1, channels + 1):
            stay = channels - number
            product = (left[:, :stay] * values[:stay]) @ right[:stay]
            lost = np.eye(channels) - query[1] @ product @ key[1]
            # All queries times all keys, as they are and without the channels.
            scores = data[1][0, head] @ lost @ data[1][1, head].T
            expected[number] += np.square(scores).mean()
    close(judged_pairs(tuple(halves)), np.maximum.accumulate(expected))


@pytest.mark.parametrize('metric', ['fisher', 'plain'])
def test_curves_of_a_network_begin_at_nothing_and_never_fall(metric):
    torch.manual_seed(0)
    model = Transformer(16, 40).eval()
    for block in model.blocks:
        block.attn.num_heads = 2
    images = list(torch.randn(24, 6, 16, generator=torch.Generator().manual_seed(1)).split(8))
    criterion, units = OBS(metric), find_units(model)
    observers = criterion.observers(units, units.sizes)
    seen = calibrate(model, images, observers, labels=OBS.labels)
    curves = criterion.predict_curves(units, units.sizes, seen)
    for unit in units:
        for kind in unit.kinds:
            found = torch.tensor(curves.loss[unit.name][kind], dtype=torch.double)
            assert len(found) == unit.sizes[kind] + 1 and bool(found.isfinite().all())
            assert found[0] == 0 and found[-1] > 0 and bool((found.diff() >= 0).all())
