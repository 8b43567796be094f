"""Steps that are halved until what they climb does not fall."""

from __future__ import annotations

import numpy as np

from ensemw2s.core._ascent import climb


def hills(x):
    """A parabola for each coordinate, highest at 1."""
    return -np.square(x - 1.0)


def test_each_coordinate_takes_its_own_step():
    # From 0: a step to 1.5 is good, one to 3 is halved once to 1.5, one down is never good.
    moved = climb(hills, np.zeros(3), np.array([1.5, 3.0, -1.0]))
    np.testing.assert_allclose(moved, [1.5, 1.5, 0.0], atol=1e-8)


def test_parameters_of_one_part_move_together():
    def parts(values):
        return hills(values[0]) + hills(values[1])

    moved = climb(parts, np.zeros((2, 2)), np.array([[1.0, 4.0], [1.0, 4.0]]))
    np.testing.assert_allclose(moved, [[1.0, 2.0], [1.0, 2.0]])


def test_a_value_that_is_no_number_is_no_ascent():
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = climb(lambda x: np.log(1.0 - x) + 2.0 * x, np.zeros(1), np.array([4.0]))
    assert moved[0] == 0.5


def test_a_step_of_rounding_only_costs_no_search():
    calls = []

    def parts(values):
        calls.append(1)
        return -np.abs(values)

    np.testing.assert_array_equal(climb(parts, np.zeros(4), np.full(4, 1e-12)), np.zeros(4))
    assert len(calls) <= 3
