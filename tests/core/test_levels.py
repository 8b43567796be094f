"""Weights by level are the dense weights, whatever is done with them."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core import draws
from ensemw2s.core._parts import PART
from ensemw2s.core.boosting import (
    BoostingState,
    LevelWeights,
    Units,
    draw_round,
    effective_sample_size,
    reweight,
    weighted_error,
)


def some_weights(n: int, levels: int = 5) -> np.ndarray:
    rng = np.random.default_rng(n)
    return rng.choice(rng.random(levels), n)


def by_weight(weights: np.ndarray, wrong: np.ndarray, among: np.ndarray) -> float:
    """The error among some units, each weight by the mass of all units that have it."""
    masses, shares = [], []
    for value in np.unique(weights):
        own = weights == value
        if (own & among).any():
            masses.append(weights[own].sum())
            shares.append(wrong[own & among].mean())
    return float(np.average(shares, weights=masses))


def test_the_error_out_of_bag_is_that_of_all_units() -> None:
    """Units that a member missed are heavy, and seldom out of its next bag; a model that knows no more of units that it was shown has
    the same error there."""
    rng = np.random.default_rng(0)
    n = 20_000
    offsets = np.arange(0, n + 1, 5)
    hard = rng.random(n) < 0.2
    levels = LevelWeights.uniform(n).reweighted(hard, 3.0)
    plain = []
    for _ in range(8):
        wrong = rng.random(n) < np.where(hard, 0.5, 0.05)
        outside = draw_round(1, "sample_bootstrap", levels.dense(), offsets, rng).out_of_bag
        # Each draw by itself: one decides about one member.
        assert levels.error_among(wrong, outside) == pytest.approx(levels.error(wrong), abs=0.06)
        dense = levels.dense()[outside]
        plain.append(dense[wrong[outside]].sum() / dense.sum() - levels.error(wrong))
    # By the weights of those that were not drawn it would be too low.
    assert np.mean(plain) < -0.05


@pytest.mark.parametrize("n", [3_000, 20_000])
def test_a_few_heavy_units_do_not_stand_for_all(n: int) -> None:
    """After a first round with error 0.1 and prior 0.7 the missed tokens have seven tenths of the weight, and a bootstrap of tokens
    leaves none of them out, or a handful."""
    rng = np.random.default_rng(1)
    hard = rng.random(n) < 0.1
    levels = LevelWeights.uniform(n).reweighted(hard, math.log(0.9 / 0.1) + math.log(0.7 / 0.3))
    for _ in range(12):
        wrong = rng.random(n) < np.where(hard, 0.4, 0.02)
        outside = draw_round(1, "token_bootstrap", levels.dense(), np.arange(0, n + 1, 5), rng).out_of_bag
        assert levels.error_among(wrong, outside) is None


def test_a_round_by_hand() -> None:
    """Four units, one wrong, alpha log 3: its weight triples, so that it has half of all."""
    start = LevelWeights.uniform(4)
    wrong = [True, False, False, False]
    assert start.error(wrong) == 0.25
    after = start.reweighted(wrong, math.log(3.0))
    np.testing.assert_allclose(after.dense(), [1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert after.level.dtype == np.uint8
    assert after.values.size == 2
    assert after.sum() == pytest.approx(1.0)
    assert after.effective_sample_size() == pytest.approx(1 / (1 / 4 + 3 / 36))
    # One of the two light ones that are looked at is wrong, which stands for half of the three.
    missed, any_number = [True, True, False, False], {"least": 1, "covered": 0.0}
    assert after.error_among(missed, [True, True, True, False], **any_number) == pytest.approx(
        1 / 2 + 3 / 6 * 1 / 2
    )
    assert after.error_among(missed, [False, True, True, False], **any_number) == pytest.approx(1 / 2)
    assert after.error_among(wrong, [False] * 4, **any_number) is None
    # Half of the mass has nobody to stand for it; two are less than three.
    assert after.error_among(missed, [False, True, True, False], least=1, covered=0.6) is None
    assert after.error_among(missed, [False, True, True, False], least=1, covered=0.5) == pytest.approx(1 / 2)
    assert after.error_among(missed, [False, True, True, False], least=3, covered=0.0) is None
    assert after.heaviest(3) == [0, 1, 2]
    assert after.heaviest(9) == [0, 1, 2, 3]
    np.testing.assert_allclose(after[1:3], [1 / 6, 1 / 6])


def test_units_that_the_cap_makes_equal_are_one_level() -> None:
    after = LevelWeights.uniform(8).reweighted(np.arange(8) < 2, 5.0, 1.5)
    more = after.reweighted(np.arange(8) < 3, 5.0, 1.5)
    assert after.values.size == 2
    assert more.values.size == 2
    np.testing.assert_array_equal(more.counts(), [5, 3])
    assert more.values[1] == 1.5 / 8


@pytest.mark.parametrize(
    ("n", "missed", "alpha"), [(11, 3, 40.0), (14, 5, 37.0), (8, 2, 800.0), (100, 5, 1e300)]
)
def test_capped_units_that_hold_all_the_weight(n: int, missed: int, alpha: float) -> None:
    """The cap is 1 / missed, so that what the others have is rounding."""
    wrong = np.arange(n) < missed
    for after in (
        LevelWeights.uniform(n).reweighted(wrong, alpha, n / missed).dense(),
        reweight(np.full(n, 1.0 / n), wrong, alpha, max_weight=n / missed),
    ):
        np.testing.assert_allclose(after[:missed], 1.0 / missed)
        assert after.sum() == pytest.approx(1.0)
        assert (after >= 0.0).all()


def test_the_same_units_missed_again_and_again() -> None:
    state = BoostingState.start(Units.build([0, 100]))
    for _ in range(60):
        state = state.update(np.arange(100) < 5, 2.0, 20.0, error=0.3)
    np.testing.assert_allclose(state.weights[:5], 0.2)
    assert state.weights.sum() == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.floats(-3, 12), st.sampled_from([None, 1.0, 1.7, 4.0])), min_size=1, max_size=10),
    st.integers(0, 1000),
)
def test_rounds_are_those_of_dense_weights(n, rounds, seed) -> None:
    rng = np.random.default_rng(seed)
    levels, dense = LevelWeights.uniform(n), np.full(n, 1.0 / n)
    for alpha, cap in rounds:
        wrong = rng.random(n) < rng.random()
        among = rng.random(n) < 0.5
        assert levels.error(wrong) == pytest.approx(weighted_error(wrong, dense), abs=1e-12)
        found = levels.error_among(wrong, among, least=1, covered=0.0)
        assert (found is None) == (not dense[among].sum() > 0)
        if found is not None:
            assert found == pytest.approx(by_weight(levels.dense(), wrong, among), abs=1e-9)
        whole = levels.error_among(wrong, np.ones(n, dtype=bool), least=1, covered=0.0)
        assert whole == pytest.approx(levels.error(wrong), abs=1e-9)
        levels, dense = levels.reweighted(wrong, alpha, cap), reweight(dense, wrong, alpha, max_weight=cap)
        np.testing.assert_allclose(levels.dense(), dense, rtol=1e-9, atol=1e-15)
        assert levels.effective_sample_size() == pytest.approx(effective_sample_size(dense))
        assert levels.values.size <= n
        assert (levels.counts() > 0).all()
        assert (np.diff(levels.values) > 0).all()


@pytest.mark.parametrize("n", [1, PART - 1, PART, 3 * PART + 17])
def test_long_ones_too(n: int) -> None:
    weights = some_weights(n)
    levels, wrong = LevelWeights.of(weights), np.random.default_rng(1).random(n) < 0.4
    np.testing.assert_array_equal(levels.dense(), weights)
    np.testing.assert_array_equal(levels.counts(), np.unique(weights, return_counts=True)[1])
    assert levels.sum() == pytest.approx(weights.sum())
    np.testing.assert_allclose(
        levels.reweighted(wrong, 0.7, 2.0).dense(), reweight(weights, wrong, 0.7, max_weight=2.0), rtol=1e-9
    )
    ordered = np.argsort(-weights, kind="stable")[:20]
    assert levels.heaviest(20) == ordered.tolist()


def test_many_rounds_take_wider_numbers() -> None:
    rng = np.random.default_rng(0)
    levels, dense = LevelWeights.uniform(5000), np.full(5000, 1 / 5000)
    for alpha in 0.1 + 0.3 * rng.random(12):
        wrong = rng.random(5000) < 0.5
        levels, dense = levels.reweighted(wrong, alpha), reweight(dense, wrong, alpha)
    assert 256 < levels.values.size <= 2**12
    assert levels.level.dtype == np.uint16
    np.testing.assert_allclose(levels.dense(), dense, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LevelWeights(np.zeros(0, np.uint8), np.ones(1)), "non-empty"),
        (lambda: LevelWeights(np.zeros(3, np.int64), np.ones(1)), "unsigned"),
        (lambda: LevelWeights(np.full(3, 2, np.uint8), np.ones(2)), "below the number of values, 2, got 2"),
        (lambda: LevelWeights(np.zeros(3, np.uint8), np.array([math.nan])), "finite"),
        (lambda: LevelWeights.uniform(0), "at least one weight"),
        (lambda: LevelWeights.of([-1.0, 2.0]), "not negative"),
        (lambda: LevelWeights.uniform(3).error([True]), "length 3"),
        (lambda: LevelWeights.uniform(3).reweighted([True, False, False], math.inf), "alpha must be finite"),
        (lambda: LevelWeights.uniform(3).reweighted([True, False, False], 1.0, 0.5), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["token", "window", "sample", "choice"])
def test_units_spread_levels_as_they_spread_weights(kind: str) -> None:
    offsets = np.array([0, 3, 4, 9, 16])
    units = Units.build(offsets, kind, window=3 if kind == "window" else None)
    weights = some_weights(units.n_units, 3)
    tokens = units.spread(LevelWeights.of(weights))
    assert isinstance(tokens, LevelWeights)
    np.testing.assert_allclose(tokens.dense(), units.spread(weights))


@pytest.mark.parametrize("method", ["token_bootstrap", "sample_bootstrap", "loss"])
@pytest.mark.parametrize("block", [2**17, 1000, 40])
def test_draws_from_levels_are_those_from_dense_weights(method, block, monkeypatch) -> None:
    monkeypatch.setattr(draws, "_BLOCK", block - block % 8)
    offsets = np.cumsum([0, *np.random.default_rng(3).integers(1, 9, 600)])
    weights = some_weights(int(offsets[-1])) * (np.arange(offsets[-1]) > 300)
    one, other = (
        draw_round(1, method, given, offsets, np.random.default_rng(5))
        for given in (weights, LevelWeights.of(weights))
    )
    for name in ("rows", "row_offsets", "denominators", "out_of_bag"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.loss_weights, other.loss_weights, rtol=1e-6)
    if method != "loss":
        assert one.out_of_bag[:300].all()


def test_a_round_takes_at_most_eight_bytes_a_token() -> None:
    """Held, drawn, missed, reweighted: what a round of a token bootstrap takes, with 16 tokens an answer."""
    n = 2_000_000
    offsets = np.arange(0, n + 1, 16, dtype=np.int64)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    units = Units.build(offsets)
    state = BoostingState.start(units)
    for _ in range(3):
        draw = draw_round(1, "token_bootstrap", units.spread(state.unit_weights), offsets, rng)
        outside = draw.outside
        del draw
        wrong = np.zeros(n, dtype=bool)
        for start in range(0, n, 2**16):
            wrong[start : start + 2**16] = rng.random(min(2**16, n - start)) < 0.3
        state.unit_weights.error_among(wrong, np.unpackbits(outside, count=n).view(np.bool_))
        state = state.update(wrong, 0.5, 20.0)
        del wrong
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Blocks and buffers take the same at any size.
    assert most + offsets.nbytes <= 8 * n + 2**23
