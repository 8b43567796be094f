"""Units: which tokens belong together, when a unit is wrong, and its weight spread over its tokens."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core.boosting import Units, sample_distribution

OFFSETS = np.array([0, 5, 6, 10])  # three samples of 5, 1 and 4 tokens

ragged = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(lambda lengths: np.cumsum([0, *lengths]))


def build(offsets, kind, window=3, wrong_share=None):
    return Units.build(offsets, kind, window=window if kind == "window" else None, wrong_share=wrong_share)


def test_units_by_hand():
    token = build(OFFSETS, "token")
    np.testing.assert_array_equal(token.offsets, np.arange(11))
    np.testing.assert_array_equal(token.sample_index, [0, 0, 0, 0, 0, 1, 2, 2, 2, 2])
    window = build(OFFSETS, "window", window=2)
    np.testing.assert_array_equal(window.offsets, [0, 2, 4, 5, 6, 8, 10])
    np.testing.assert_array_equal(window.sample_index, [0, 0, 0, 1, 2, 2])
    for kind in ("sample", "choice"):
        sample = build(OFFSETS, kind)
        np.testing.assert_array_equal(sample.offsets, OFFSETS)
        np.testing.assert_array_equal(sample.sample_index, [0, 1, 2])
        assert (sample.n_units, sample.n_tokens) == (3, 10)


def test_wrong_units_by_hand():
    wrong = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    np.testing.assert_array_equal(build(OFFSETS, "token").wrong(wrong), wrong)
    np.testing.assert_array_equal(build(OFFSETS, "window", 2).wrong(wrong), [1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(build(OFFSETS, "sample").wrong(wrong), [1, 0, 1])
    np.testing.assert_array_equal(build(OFFSETS, "sample", wrong_share=0.5).wrong(wrong), [0, 0, 1])
    np.testing.assert_array_equal(build(OFFSETS, "window", 2, 1.0).wrong(wrong), [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(build(OFFSETS, "choice").wrong([True, False, True]), [1, 0, 1])


def test_a_share_is_met_exactly():
    wrong = np.arange(25) < 14
    assert 0.56 * 25 > 14  # the trap
    assert build([0, 25], "sample", wrong_share=0.56).wrong(wrong)[0]
    assert not build([0, 25], "sample", wrong_share=0.5600001).wrong(wrong)[0]


def test_spread_by_hand():
    np.testing.assert_allclose(build([0, 2, 3], "sample").spread([0.5, 0.5]), [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(build([0, 2, 3], "sample").spread([1.0, 2.0]), [0.25, 0.25, 0.5])
    np.testing.assert_allclose(build([0, 2, 3], "token").spread([2.0, 1.0, 1.0]), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(build([0, 3], "window", 2).spread([3.0, 2.0]), [0.375, 0.375, 0.25])


@given(
    ragged, st.sampled_from(["token", "window", "sample", "choice"]), st.integers(1, 4), st.integers(0, 99)
)
def test_spread_keeps_the_ratios_of_the_units(offsets, kind, window, seed):
    units = build(offsets, kind, window)
    weights = np.random.default_rng(seed).random(units.n_units) + 1e-6
    tokens = units.spread(weights)
    assert tokens.shape == (offsets[-1],)
    assert tokens.sum() == pytest.approx(1.0, abs=1e-12)
    first = tokens[units.offsets[:-1]]
    np.testing.assert_allclose(first / first[0], weights / weights[0], rtol=1e-12)
    np.testing.assert_array_equal(tokens, np.repeat(first, np.diff(units.offsets)))


@given(ragged, st.integers(0, 99))
def test_a_sample_unit_is_drawn_by_its_own_weight(offsets, seed):
    units = build(offsets, "sample", 1)
    weights = np.random.default_rng(seed).random(units.n_units) + 1e-6
    drawn = sample_distribution(units.spread(weights), offsets, "mean")
    np.testing.assert_allclose(drawn, weights / weights.sum(), rtol=1e-12)


@given(ragged, st.integers(1, 4), st.sampled_from([None, 0.25, 0.5, 1.0]), st.integers(0, 99))
def test_windows_are_those_of_a_plain_loop(offsets, window, share, seed):
    wrong = np.random.default_rng(seed).random(offsets[-1]) < 0.4
    expected = []
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        for begin in range(start, stop, window):
            part = wrong[begin : min(begin + window, stop)]
            expected.append((begin, i, part.any() if share is None else part.mean() >= share))
    units = build(offsets, "window", window, share)
    starts, samples, flags = zip(*expected, strict=True)
    np.testing.assert_array_equal(units.offsets, [*starts, offsets[-1]])
    np.testing.assert_array_equal(units.sample_index, samples)
    np.testing.assert_array_equal(units.wrong(wrong), flags)


@given(ragged)
def test_windows_of_one_token_are_tokens_and_long_ones_are_samples(offsets):
    np.testing.assert_array_equal(build(offsets, "window", 1).offsets, build(offsets, "token").offsets)
    np.testing.assert_array_equal(build(offsets, "window", 9).offsets, build(offsets, "sample").offsets)


@pytest.mark.parametrize(
    ("offsets", "options", "message"),
    [
        ([0, 2, 2], {}, "row 1 has length 0"),
        ([0, 3, 2], {}, "row 1 has length -1"),
        ([1, 2], {}, "start at 0"),
        ([0], {}, "at least 2"),
        ([0.0, 2.0], {}, "integer"),
        ([0, 2], {"kind": "word"}, "token, window, sample, choice"),
        ([0, 2], {"kind": "window"}, "window is needed"),
        ([0, 2], {"kind": "window", "window": 0}, "at least 1"),
        ([0, 2], {"kind": "token", "window": 2}, "window is needed"),
        ([0, 2], {"kind": "token", "wrong_share": 0.5}, "wrong_share"),
        ([0, 2], {"kind": "choice", "wrong_share": 0.5}, "wrong_share"),
        ([0, 2], {"kind": "sample", "wrong_share": 0.0}, "wrong_share"),
        ([0, 2], {"kind": "sample", "wrong_share": 1.1}, "wrong_share"),
        ([0, 2], {"kind": "sample", "wrong_share": math.nan}, "wrong_share"),
    ],
)
def test_units_refuse(offsets, options, message):
    with pytest.raises(ValueError, match=message):
        Units.build(offsets, **options)


def test_units_refuse_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="length 10"):
        build(OFFSETS, "sample").wrong(np.zeros(3, bool))
    with pytest.raises(ValueError, match="length 3"):
        build(OFFSETS, "choice").wrong(np.zeros(10, bool))
    with pytest.raises(ValueError, match="one entry per unit, 3"):
        build(OFFSETS, "sample").spread(np.ones(10))


def test_sample_distribution_by_hand():
    weights = np.array([0.1, 0.3, 0.6])
    np.testing.assert_allclose(sample_distribution(weights, [0, 2, 3]), [0.25, 0.75])  # means 0.2 and 0.6
    np.testing.assert_allclose(sample_distribution(weights, [0, 2, 3], "sum"), [0.4, 0.6])


@given(ragged, st.integers(0, 99))
def test_sample_distribution_moves_with_the_samples(offsets, seed):
    rng = np.random.default_rng(seed)
    rows = np.split(rng.random(offsets[-1]) + 1e-3, offsets[1:-1])
    order = rng.permutation(len(rows))
    shuffled = [rows[i] for i in order]
    for how in ("mean", "sum"):
        probs = sample_distribution(np.concatenate(rows), offsets, how)
        assert probs.sum() == pytest.approx(1.0)
        moved = sample_distribution(
            np.concatenate(shuffled), np.cumsum([0, *(row.size for row in shuffled)]), how
        )
        np.testing.assert_allclose(moved, probs[order], rtol=1e-12)


@given(ragged)
def test_uniform_tokens_draw_samples_uniformly_by_mean_and_by_length_by_sum(offsets):
    weights = np.full(offsets[-1], 0.5)
    n = offsets.size - 1
    np.testing.assert_allclose(sample_distribution(weights, offsets), np.full(n, 1 / n))
    np.testing.assert_allclose(sample_distribution(weights, offsets, "sum"), np.diff(offsets) / offsets[-1])


def test_sample_distribution_refuses():
    with pytest.raises(ValueError, match="mean, sum"):
        sample_distribution([1.0], [0, 1], "max")
    with pytest.raises(ValueError, match="end at the number of entries, 2, got 1"):
        sample_distribution([1.0, 1.0], [0, 1])


@given(offsets=ragged, kind=st.sampled_from(["token", "window", "sample"]), data=st.data())
def test_a_unit_is_whole_when_all_its_tokens_are(offsets, kind, data):
    units = build(offsets, kind)
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=units.n_tokens, max_size=units.n_tokens)))
    starts = units.offsets
    expected = [bool(flags[a:b].all()) for a, b in itertools.pairwise(starts)]
    np.testing.assert_array_equal(units.whole(flags), expected)
    packed = units.whole_packed(np.packbits(flags))
    np.testing.assert_array_equal(np.unpackbits(packed, count=units.n_units), expected)
    with pytest.raises(ValueError, match="bytes, got shape"):
        units.whole_packed(np.zeros(units.n_tokens // 8 + 2, dtype=np.uint8))


@pytest.mark.parametrize("kind", ["token", "window", "sample", "choice"])
def test_the_place_of_a_unit_is_where_its_tokens_are(kind):
    units = Units.build([0, 3, 4, 9, 16], kind, window=3 if kind == "window" else None)
    for unit in range(units.n_units):
        sample, start, stop = units.place(unit)
        first = units.sample_offsets[sample]
        assert (first + start, first + stop) == tuple(units.offsets[unit : unit + 2])
        assert sample == units.sample_index[unit]
    for unit in (-1, units.n_units):
        with pytest.raises(ValueError, match="unit must lie in"):
            units.place(unit)
