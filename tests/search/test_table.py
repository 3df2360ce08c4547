"""Interpolation between measured times, and which sizes are measured."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from mcf_mm.search.table import Table, grid, interpolate

AXES = [[1, 2, 6], [8, 24, 40, 64], [4, 20, 60]]


@pytest.fixture
def values() -> torch.Tensor:
    return torch.rand(3, 4, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def test_interpolation_is_exact_at_grid_points(values):
    points = torch.meshgrid(*map(torch.tensor, AXES), indexing='ij')
    torch.testing.assert_close(interpolate(AXES, values, list(points)), values)
    assert float(interpolate(AXES, values, [2, 40, 60])) == float(values[1, 2, 2])


def test_interpolation_is_that_of_scipy(values):
    generator = np.random.default_rng(0)
    points = [generator.uniform(axis[0], axis[-1], 50) for axis in AXES]
    theirs = RegularGridInterpolator(AXES, values.numpy())(np.stack(points, 1))
    ours = interpolate(AXES, values, [torch.tensor(point) for point in points])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_interpolation_is_exact_for_bilinear_functions_even_outside():
    axes = [[8, 100, 192], [24, 400, 768]]
    a, b = torch.meshgrid(*(torch.tensor(axis).double() for axis in axes), indexing='ij')

    def time(a, b):
        return 3 + 2 * a + 5 * b + 7 * a * b

    rows, columns = torch.arange(1, 201)[:, None], torch.arange(1, 801)
    found = interpolate(axes, time(a, b), [rows, columns])
    assert found.shape == (200, 800)
    torch.testing.assert_close(found, time(rows.double(), columns.double()))


def test_an_axis_may_have_one_point():
    values = torch.tensor([[1.0, 3.0]], dtype=torch.double)
    assert float(interpolate([[5], [2, 4]], values, [3, 3])) == 2.0
    assert interpolate([[5], [2, 4]], values, [torch.tensor([1, 9]), 3]).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    'arguments, sizes',
    [
        ((768, 5), [8, 200, 384, 576, 768]),
        ((64, 4), [8, 24, 48, 64]),
        ((64, 4, 8, 4), [4, 20, 44, 60]),  # none that the line above has
        ((3, 3, 1), [1, 2, 3]),
        ((6, 3, 1), [1, 4, 6]),
        ((8, 4, 2), [2, 4, 6, 8]),
        ((8, 4, 2, 1), [1, 3, 5, 7]),
        ((1, 4, 2), [1]),
        ((100, 3), [4, 52, 100]),
    ],
)
def test_grid_points_are_evenly_spaced(arguments, sizes):
    assert grid(*arguments) == sizes


def test_as_many_query_channels_as_values_have_times_of_their_own():
    axes = dict(heads=[1, 3], qk=[8, 64], v=[4, 60])
    table = Table(
        axes,
        torch.full((2, 2, 2), 5.0, dtype=torch.double),
        [8, 64],
        torch.full((2, 2), 2.0, dtype=torch.double),
    )
    assert float(table.of(dict(heads=2, qk=33, v=33))) == 2.0
    assert float(table.of(dict(heads=2, qk=33, v=34))) == 5.0
    qk, v = torch.arange(1, 65)[:, None], torch.arange(1, 65)
    times = table.of(dict(heads=2, qk=qk, v=v))
    expected = torch.full((64, 64), 5.0, dtype=torch.double).fill_diagonal_(2.0)
    torch.testing.assert_close(times, expected)
    again = Table.from_dict(table.scaled(0.5).to_dict())
    torch.testing.assert_close(again.of(dict(heads=2, qk=qk, v=v)), times / 2)


def test_numbers_that_are_no_multiples_take_longer():
    seconds = torch.ones(2, 2, 2, dtype=torch.double)
    odd = dict(qk=1.5, v=1.1, equal=1.25)
    axes = dict(heads=[1, 3], qk=[8, 64], v=[4, 60])
    table = Table(axes, seconds, [8, 64], seconds[0], odd)
    times = {(8, 12): 1, (9, 12): 1.5, (8, 13): 1.1, (9, 13): 1.65, (8, 8): 1, (9, 9): 1.25}
    for (qk, v), time in times.items():
        assert float(table.of(dict(heads=2, qk=qk, v=v))) == pytest.approx(time)


def test_no_time_is_negative():
    table = Table(dict(hidden=[8, 16]), torch.tensor([0.1, 1.0], dtype=torch.double))
    assert float(table.of(dict(hidden=1))) == 0.0
