"""Passes in parts are the whole-array expressions, at and around the ends of the parts."""

from __future__ import annotations

import numpy as np
import pytest

from ensemw2s.core._parts import PART, above, parts, scale_and_clip, scale_split, split_mass
from ensemw2s.core.boosting import effective_sample_size, reweight, weighted_error

SIZES = (1, 2, PART - 1, PART, PART + 1, 3 * PART + 17)


def units(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.random(n) ** 4, rng.random(n) < 0.3


@pytest.mark.parametrize("n", SIZES)
def test_parts_cover_everything_once(n: int) -> None:
    np.testing.assert_array_equal(np.concatenate([np.arange(n)[part] for part in parts(n)]), np.arange(n))


@pytest.mark.parametrize("n", SIZES)
def test_masses_scales_and_caps(n: int) -> None:
    values, flags = units(n)
    np.testing.assert_allclose(
        split_mass(values, flags), (values[flags].sum(), values[~flags].sum()), rtol=1e-13
    )
    for scales in ((2.0, 0.5), (1e-17, 3.0), (0.0, 1.0)):
        scaled = scale_split(values, flags, (1.0, scales[0]), (1.0, scales[1]))
        np.testing.assert_allclose(scaled, values * np.where(flags, *scales), rtol=1e-15)
    count, rest = above(values, 0.2)
    assert count == (values > 0.2).sum()
    assert rest == pytest.approx(values[values <= 0.2].sum(), rel=1e-13)
    np.testing.assert_array_equal(scale_and_clip(values, 3.0, 0.7), np.minimum(values * 3.0, 0.7))


@pytest.mark.parametrize("n", SIZES[2:])
def test_long_arrays_follow_the_formulas(n: int) -> None:
    values, wrong = units(n)
    product = values * np.exp(0.9 * wrong)
    np.testing.assert_allclose(reweight(values, wrong, 0.9), product / product.sum(), rtol=1e-12)
    capped = reweight(values, wrong, 0.9, max_weight=2.0)
    assert capped.max() <= 2.0 / n
    assert capped.sum() == pytest.approx(1.0, abs=1e-12)
    assert weighted_error(wrong, values) == pytest.approx(values[wrong].sum() / values.sum(), rel=1e-13)
    shares = values / values.sum()
    assert effective_sample_size(values) == pytest.approx(1.0 / np.square(shares).sum(), rel=1e-12)


def test_a_small_mass_keeps_its_digits() -> None:
    values = np.full(2 * PART, 1.0)
    values[5], flags = 1e-18, np.zeros(2 * PART, dtype=bool)
    flags[5] = True
    assert split_mass(values, flags) == (1e-18, 2 * PART - 1)
    assert split_mass(values, ~flags) == (2 * PART - 1, 1e-18)


def test_masses_too_small_to_divide_by() -> None:
    scaled = scale_split(
        np.array([1e-320, 3e-320, 1.0]), np.array([True, True, False]), (4e-320, 0.5), (1.0, 0.5)
    )
    np.testing.assert_allclose(scaled, [0.125, 0.375, 0.5], rtol=1e-3)


def test_what_is_not_finite_is_refused_wherever_it_stands() -> None:
    for bad in (np.nan, np.inf, -1.0):
        values, flags = units(2 * PART + 3)
        values[-1] = bad
        with pytest.raises(ValueError, match="finite, not negative"):
            split_mass(values, flags)
