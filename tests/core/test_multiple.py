"""Holm's correction, by hand and by its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core.multiple import holm


def test_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9, 0.6]), [1.0, 1.0, 1.0])
    np.testing.assert_allclose(holm([0.02]), [0.02])
    np.testing.assert_allclose(holm([0.02, 0.02, 0.5]), [0.06, 0.06, 0.5])


@given(st.lists(st.sampled_from([0.0, 0.004, 0.01, 0.02, 0.03, 0.2, 1.0]), min_size=1, max_size=4))
def test_is_the_closed_test_of_bonferroni(values):
    """Holm rejects exactly what the closure of Bonferroni tests rejects: the largest over all sets that hold it."""
    adjusted = holm(values)
    for i in range(len(values)):
        others = [j for j in range(len(values)) if j != i]
        sets = [(i, *more) for size in range(len(values)) for more in itertools.combinations(others, size)]
        closure = max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets)
        assert adjusted[i] == pytest.approx(closure)


@pytest.mark.parametrize("values", [[], [[0.5]], [1.1], [-0.1], [math.nan]])
def test_refuses(values):
    with pytest.raises(ValueError, match="p_values must"):
        holm(values)
