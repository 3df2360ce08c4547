"""Linear algebra of the closed form is that of plain least squares, tried out one by one."""

import numpy as np
import pytest
import torch

from mcf_mm.pruning.solves import (
    RIDGE,
    augmented,
    group_removal_order,
    pair_bases,
    regularise,
    removal_order,
    root,
    solve_kept,
    value_basis,
)


def problem(outputs=5, inputs=9, samples=40, seed=0):
    """Inputs with a constant, their second moments, weights with bias and a metric; double."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, inputs)) @ rng.normal(size=(inputs, inputs)) + rng.normal(
        size=inputs
    )
    x = np.c_[x, np.ones(samples)]
    weight, half = rng.normal(size=(outputs, inputs + 1)), rng.normal(size=(outputs, outputs))
    moments = torch.from_numpy(x.T @ x / samples)
    return x, moments, torch.from_numpy(weight), torch.from_numpy(half @ half.T)


def with_ridge(x, ridge=RIDGE):
    """The ridge term as samples of its own, for which plain least squares does the same."""
    share = ridge * np.square(x[:, :-1]).mean()
    extra = np.sqrt(share) * np.eye(x.shape[1])[:-1]
    return np.r_[x / np.sqrt(len(x)), extra]


def least_error(x, weight, metric, kept):
    """Solution and error when some inputs stay, and the constant: ``numpy.linalg.lstsq``."""
    kept = [*kept, x.shape[1] - 1]
    y = x @ weight.numpy().T
    solved = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    rest = y - x[:, kept] @ solved
    return solved.T, np.einsum('no,op,np->', rest, metric.numpy(), rest)


def greedy(x, weight, metric, groups):
    """Remove the group whose removal leaves the least error, all solved anew for each."""
    order, costs, alive = [], [0.0], list(range(len(groups)))
    while alive:
        errors = []
        for gone in alive:
            kept = [i for group in alive if group != gone for i in groups[group]]
            errors.append(least_error(x, weight, metric, kept)[1])
        order.append(alive.pop(int(np.argmin(errors))))
        costs.append(min(errors))
    return order, costs


def metric_of(given, outputs=5):
    return torch.eye(outputs, dtype=torch.double) if given is None else given


@pytest.mark.parametrize('panel', [1, 2, 4, 9, 32])
@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
def test_inputs_go_in_the_order_of_solving_all_anew_for_each(panel, felt):
    for seed in range(3):
        x, moments, weight, metric = problem(seed=seed)
        given = metric if felt else None
        found = removal_order(weight, moments, given, panel=panel)
        order, costs = greedy(with_ridge(x), weight, metric_of(given), [[i] for i in range(9)])
        assert found.order.tolist() == order
        torch.testing.assert_close(found.cost, torch.tensor(costs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
@pytest.mark.parametrize('groups', [3, 4])
def test_groups_go_in_the_order_of_solving_all_anew_for_each(groups, felt):
    x, moments, weight, metric = problem(inputs=12, seed=groups)
    given = metric if felt else None
    found = group_removal_order(weight, moments, given, groups)
    parts = np.arange(12).reshape(groups, -1).tolist()
    order, costs = greedy(with_ridge(x), weight, metric_of(given), parts)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.cost, torch.tensor(costs), rtol=1e-9, atol=1e-9)


def test_one_order_serves_every_size_and_its_cost_is_the_error_that_the_solution_has():
    x, moments, weight, metric = problem(seed=5)
    order = removal_order(weight, moments, metric, panel=4)
    assert order.cost[0] == 0 and bool((order.cost.diff() >= 0).all())
    assert sorted(order.order.tolist()) == list(range(9))
    before = set(range(9))
    for size in range(8, 0, -1):
        kept = order.kept(size)
        assert len(kept) == size and set(kept.tolist()) < before
        assert bool((kept.diff() > 0).all())
        before = set(kept.tolist())
        change = weight.clone()
        change[:, [*kept.tolist(), 9]] -= solve_kept(weight, moments, kept)
        error = torch.trace(metric @ change @ regularise(moments) @ change.T)
        torch.testing.assert_close(order.cost[9 - size], error, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('ridge', [RIDGE, 0.3])
def test_the_solution_is_that_of_plain_least_squares(ridge):
    x, moments, weight, metric = problem()
    for kept in ([0, 3, 4], [8], list(range(9)), [1, 2, 5, 6, 7, 8]):
        solved = solve_kept(weight, moments, torch.tensor(kept), ridge)
        expected, _ = least_error(with_ridge(x, ridge), weight, metric, kept)
        torch.testing.assert_close(solved, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_the_solution_is_where_single_updates_lead():
    _, moments, weight, _ = problem(seed=7)
    order = removal_order(weight, moments)
    # Hassibi and Stork, one removal after the other, with no panels.
    inverse, updated = torch.linalg.inv(regularise(moments)), weight.clone()
    alive = list(range(10))
    for j in order.order.tolist()[:5]:
        updated = updated - torch.outer(updated[:, j], inverse[j]) / inverse[j, j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        alive.remove(j)
    torch.testing.assert_close(
        updated[:, alive], solve_kept(weight, moments, order.kept(4)), rtol=1e-9, atol=1e-9
    )


def test_moments_of_low_rank_have_an_order_too():
    for samples in (40, 4):
        x, _, weight, _ = problem(samples=samples)
        x[:, 2] = 0  # a dead input
        moments = torch.from_numpy(x.T @ x / samples)
        order = removal_order(weight, moments)
        assert order.cost.isfinite().all()
        assert sorted(order.order.tolist()) == list(range(9))
        assert samples == 4 or order.order[0] == 2
    nothing = torch.zeros_like(moments)
    nothing[-1, -1] = 1
    assert removal_order(weight, nothing).cost.isfinite().all()
    assert solve_kept(weight, nothing, torch.tensor([1, 2])).isfinite().all()


def test_a_layer_without_bias_has_a_bias_of_zero():
    layer = torch.nn.Linear(4, 3, bias=False)
    assert augmented(layer).dtype == torch.double
    assert augmented(layer)[:, -1].tolist() == [0, 0, 0]


def positive(size, rank=None, seed=0):
    half = np.random.default_rng(seed).normal(size=(size, rank or size))
    return torch.from_numpy(half @ half.T)


def test_the_root_of_a_matrix_and_its_inverse():
    matrix = torch.stack([positive(6, seed=seed) for seed in range(3)])
    half, inverse = root(matrix)
    torch.testing.assert_close(half @ half, matrix)
    torch.testing.assert_close(half @ inverse, torch.eye(6).double().expand(3, 6, 6))


def weighted(error, left, right):
    return torch.trace(left @ error @ right @ error.T)


def tails(matrix):
    """What Eckart and Young leave of the squared norm without the last n singular values."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    squares = np.r_[squares, np.zeros(matrix.shape[1] - len(squares))]
    return torch.tensor([squares[len(squares) - n :].sum() for n in range(len(squares) + 1)])


@pytest.mark.parametrize('outputs', [4, 11])
@pytest.mark.parametrize('felt', [False, True], ids=['plain', 'metric'])
def test_values_lose_what_the_best_matrix_of_low_rank_loses(outputs, felt):
    rng = np.random.default_rng(outputs)
    proj, covariance = torch.from_numpy(rng.normal(size=(outputs, 6))), positive(6)
    metric = positive(outputs, seed=1) if felt else None
    basis = value_basis(proj, covariance, metric)
    torch.testing.assert_close(basis.into @ basis.back, torch.eye(6).double())
    metric = metric_of(metric, outputs)
    left, right = (np.linalg.cholesky(part.numpy()) for part in (metric, covariance))
    torch.testing.assert_close(basis.cost, tails(left.T @ proj.numpy() @ right))
    for gone in range(7):
        stays = 6 - gone
        error = proj - proj @ basis.back[:, :stays] @ basis.into[:stays]
        torch.testing.assert_close(weighted(error, metric, covariance), basis.cost[gone])


def test_queries_and_keys_lose_what_the_best_matrix_of_low_rank_loses():
    query, key = positive(6), positive(6, seed=1)
    first, second = pair_bases(query, key)
    eye = torch.eye(6).double()
    for basis in (first, second):
        torch.testing.assert_close(basis.into @ basis.back, eye)
    torch.testing.assert_close(first.into.T @ second.into, eye)  # q^T k stays
    left, right = (np.linalg.cholesky(part.numpy()) for part in (query, key))
    torch.testing.assert_close(first.cost, tails(left.T @ right))
    for gone in range(7):
        stays = 6 - gone
        error = eye - first.into[:stays].T @ second.into[:stays]
        torch.testing.assert_close(weighted(error, query, key), first.cost[gone])


@pytest.mark.parametrize('rank', [0, 1, 4])
def test_covariances_of_low_rank_and_dead_heads_break_nothing(rank):
    eye = torch.eye(6).double()
    low = positive(6, rank) if rank else torch.zeros(6, 6).double()
    proj = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 6)))
    basis = value_basis(proj, low, positive(5, 3))
    near = dict(rtol=0, atol=1e-6)
    torch.testing.assert_close(proj @ basis.back @ basis.into, proj, **near)
    torch.testing.assert_close(basis.cost[6 - rank], basis.cost[0], **near)
    assert basis.into.abs().max() < 1e8  # a float32 holds it
    for query, key in ((low, positive(6, seed=1)), (positive(6, seed=1), low), (low, low)):
        first, second = pair_bases(query, key)
        torch.testing.assert_close(first.into.T @ second.into, eye, **near)
        torch.testing.assert_close(first.cost[6 - rank], first.cost[0], **near)
        assert max(first.into.abs().max(), second.into.abs().max()) < 1e8
    for basis in (value_basis(0 * proj, positive(6)), value_basis(0 * proj, 0 * low)):
        torch.testing.assert_close(basis.into @ basis.back, eye)
        assert not basis.cost.any()
