"""Intervals and tests: hand-computed values, exact enumeration on tiny samples, coverage on a known case."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core import metrics
from ensemw2s.core.metrics import (
    Interval,
    accuracy_interval,
    paired_bootstrap,
    paired_permutation,
    performance_gap_recovered,
    pgr_interval,
)


def answers(n_right, n):
    return np.arange(n) < n_right


# --- performance gap recovered --------------------------------------------------------------------


def test_performance_gap_recovered_by_hand():
    assert performance_gap_recovered(0.5, 0.7, 0.9) == pytest.approx(0.5)
    assert performance_gap_recovered(0.5, 0.4, 0.7) == pytest.approx(-0.5)
    assert performance_gap_recovered(0.5, 1.0, 0.75) == pytest.approx(2.0)
    assert performance_gap_recovered(0.5, 0.7, 0.5) is None
    for numbers in ((math.nan, 0.7, 0.9), (0.5, math.nan, 0.9), (0.5, 0.7, math.nan), (0.5, 0.7, math.inf)):
        assert performance_gap_recovered(*numbers) is None


def test_interval_to_dict_is_plain_json():
    interval = Interval(0.5, 0.4, 0.6, n=10)
    assert interval.to_dict() == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "level": 0.95}
    assert Interval(0.5, 0.4, 0.6, n=10, p_value=0.01).to_dict()["p_value"] == 0.01
    real = accuracy_interval([True, False, True], n_resamples=10, seed=0)
    assert json.loads(json.dumps(real.to_dict())) == real.to_dict()


# --- bootstrap ------------------------------------------------------------------------------------


def test_bootstrap_of_two_samples_is_the_binomial():
    # Resamples of {0, 1} have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    means = metrics._resampled_means(np.array([[[0.0, 1.0]]]), 20_000, seed=0)[0]
    values, counts = np.unique(means, return_counts=True)
    np.testing.assert_array_equal(values, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(counts / 20_000, [0.25, 0.5, 0.25], atol=0.015)


def test_accuracy_interval_agrees_with_the_normal_approximation():
    interval = accuracy_interval(answers(300, 400), n_resamples=4000, seed=1)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.n == 400
    assert interval.low == pytest.approx(0.75 - half, abs=0.006)
    assert interval.high == pytest.approx(0.75 + half, abs=0.006)
    narrower = accuracy_interval(answers(300, 400), n_resamples=4000, seed=1, level=0.5)
    assert interval.low < narrower.low < narrower.high < interval.high
    assert narrower.level == 0.5


def test_interval_ends_are_order_statistics():
    values = np.arange(101.0)
    # 2.5 of 100 steps are cut: rounded outward to 2 at each end.
    assert metrics._ends(values, values, 0.95) == (2.0, 98.0)
    assert metrics._ends(values[:1], values[:1], 0.95) == (0.0, 0.0)


def test_constant_scores_have_an_interval_of_no_length():
    interval = accuracy_interval(np.ones(50, bool), n_resamples=100, seed=0)
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_paired_bootstrap_uses_the_pairing():
    rng = np.random.default_rng(0)
    difficulty = rng.random(500)
    a, b = difficulty + 0.01, difficulty
    interval = paired_bootstrap(a, b, n_resamples=500, seed=0)
    assert interval.value == pytest.approx(0.01)
    assert interval.high - interval.low < 1e-9  # unpaired it would be about 0.07


def test_paired_bootstrap_is_antisymmetric():
    rng = np.random.default_rng(1)
    a, b = rng.random(40) < 0.7, rng.random(40) < 0.5
    forward = paired_bootstrap(a, b, n_resamples=999, seed=3)
    backward = paired_bootstrap(b, a, n_resamples=999, seed=3)
    assert (backward.value, backward.low, backward.high) == (-forward.value, -forward.high, -forward.low)


def test_the_seed_decides_and_the_chunks_do_not(monkeypatch):
    rng = np.random.default_rng(2)
    a, b = rng.random((3, 60)) < 0.7, rng.random((3, 60)) < 0.5
    whole = paired_bootstrap(a, b, n_resamples=500, seed=7)
    p_whole = paired_permutation(a, b, n_permutations=500, seed=7)
    assert whole == paired_bootstrap(a, b, n_resamples=500, seed=7)
    assert whole != paired_bootstrap(a, b, n_resamples=500, seed=8)
    assert p_whole == paired_permutation(a, b, n_permutations=500, seed=7)
    assert p_whole != paired_permutation(a, b, n_permutations=500, seed=8)
    monkeypatch.setattr(metrics, "_CHUNK_ENTRIES", 60 * 7 + 1)
    assert whole == paired_bootstrap(a, b, n_resamples=500, seed=7)
    assert 0 < p_whole <= 1


def test_coverage_of_the_bootstrap_interval():
    rng = np.random.default_rng(0)
    n_trials, covered = 400, 0
    for trial in range(n_trials):
        a = rng.random(150) < 0.7
        b = rng.random(150) < 0.55
        interval = paired_bootstrap(a, b, n_resamples=400, seed=trial)
        covered += interval.low <= 0.15 <= interval.high
    # 95 % nominal; the standard error over 400 trials is 1.1 %
    assert 0.91 <= covered / n_trials <= 0.985


def test_seeds_widen_the_interval_when_they_differ():
    rng = np.random.default_rng(0)
    n = 400
    same = np.repeat((rng.random(n) < 0.6)[None], 4, 0).astype(float)
    shifted = same + np.array([-0.2, -0.1, 0.1, 0.2])[:, None]
    narrow = accuracy_interval(same, n_resamples=2000, seed=0)
    wide = accuracy_interval(shifted, n_resamples=2000, seed=0)
    assert narrow.n == wide.n == n
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_same_answers_under_several_seeds_are_no_further_samples():
    correct = np.random.default_rng(0).random(300) < 0.6
    once = accuracy_interval(correct, n_resamples=1000, seed=0)
    four_times = accuracy_interval(np.repeat(correct[None], 4, 0), n_resamples=1000, seed=0)
    assert four_times == once


def test_means_over_seeds_and_samples_by_a_plain_loop():
    scores = np.random.default_rng(0).random((2, 3, 11))
    fast = metrics._resampled_means(scores, 20, seed=4)
    seed_rng, sample_rng = np.random.default_rng(4).spawn(2)
    for r in range(20):
        samples, seeds = sample_rng.integers(0, 11, 11), seed_rng.integers(0, 3, 3)
        np.testing.assert_allclose(fast[:, r], scores[:, seeds][:, :, samples].mean(axis=(1, 2)))


# --- p from the resamples ---


def test_p_of_the_resamples_by_hand(monkeypatch):
    means = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    monkeypatch.setattr(metrics, "_resampled_means", lambda scores, n, seed: means)
    # Two of nine are 0 or below.
    assert paired_bootstrap([1.0], [0.0], n_resamples=9, seed=0, test=True).p_value == 2 * 3 / 10
    monkeypatch.setattr(metrics, "_resampled_means", lambda scores, n, seed: -means)
    assert paired_bootstrap([0.0], [1.0], n_resamples=9, seed=0, test=True).p_value == 2 * 3 / 10
    monkeypatch.setattr(metrics, "_resampled_means", lambda scores, n, seed: means + 10)
    assert paired_bootstrap([1.0], [0.0], n_resamples=9, seed=0, test=True).p_value == 2 / 10
    monkeypatch.undo()
    assert paired_bootstrap(np.ones(5), np.ones(5), n_resamples=99, seed=0, test=True).p_value == 1.0


@pytest.mark.parametrize("seed", range(12))
def test_p_and_interval_agree_whether_0_is_left_out(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((3, 200)) < share for share in (0.6, 0.5))
    interval = paired_bootstrap(a, b, n_resamples=2000, seed=1, test=True)
    p = interval.p_value
    assert replace(interval, p_value=None) == paired_bootstrap(a, b, n_resamples=2000, seed=1)
    if abs(p - 0.05) > 0.005:
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)


def test_p_of_the_resamples_varies_the_seeds_and_a_permutation_does_not():
    """One seed of three makes all of the difference."""
    rng = np.random.default_rng(0)
    b = np.repeat((rng.random(400) < 0.5)[None], 3, axis=0).astype(float)
    a = b.copy()
    a[0, np.flatnonzero(b[0] == 0)[:40]] = 1.0
    assert paired_permutation(a, b, n_permutations=2000, seed=0) < 0.001
    # Without that seed, drawn by chance in (2/3)^3 of the resamples, nothing differs.
    p = paired_bootstrap(a, b, n_resamples=2000, seed=0, test=True).p_value
    assert p == pytest.approx(2 * (2 / 3) ** 3, abs=0.05)


# --- permutation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "difference", [[1, 1, 1, 1, -1], [0.5, 0.25, -0.125, 1.0], [0.1, 0.2, 0.3, 0.0], [1, 1, 1, 1, 1, 1]]
)
def test_permutation_agrees_with_enumeration(difference):
    d = np.array(difference, dtype=float)
    observed = abs(d.sum())
    flips = [abs(np.dot(signs, d)) >= observed - 1e-12 for signs in itertools.product([1, -1], repeat=d.size)]
    p = paired_permutation(d, np.zeros_like(d), n_permutations=20_000, seed=0)
    assert p == pytest.approx(np.mean(flips), abs=0.012)


def test_permutation_counts_sums_that_differ_by_rounding_only():
    # All differences are positive: only all signs alike, 2 of 64 patterns, are as far from 0 as observed. A
    # matrix product and a plain sum of the same numbers may differ in the last bit.
    for seed in range(20):
        d = np.random.default_rng(seed).random(6) + 0.1
        p = paired_permutation(d, np.zeros(6), n_permutations=4000, seed=seed)
        assert p == pytest.approx(2 / 64, abs=0.012)


def test_permutation_is_never_zero_and_one_without_a_difference():
    assert paired_permutation(np.ones(60), np.zeros(60), n_permutations=99, seed=0) == 0.01
    same = np.random.default_rng(0).random(20)
    assert paired_permutation(same, same, n_permutations=99, seed=0) == 1.0


def test_permutation_over_seeds_flips_samples():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    once = paired_permutation(a, b, n_permutations=500, seed=1)
    repeated = paired_permutation(
        np.repeat(a[None], 4, 0), np.repeat(b[None], 4, 0), n_permutations=500, seed=1
    )
    assert repeated == once


def test_permutation_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(5)
    p_values = [
        paired_permutation(rng.normal(size=30), rng.normal(size=30), n_permutations=199, seed=i)
        for i in range(300)
    ]
    # standard error of the share is 1.3 %
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


# --- interval of the performance gap recovered ----------------------------------------------------


def test_pgr_interval_by_hand():
    n = 400
    interval = pgr_interval(answers(200, n), answers(260, n), answers(320, n), n_resamples=2000, seed=0)
    assert interval is not None
    assert interval.value == pytest.approx(0.5)
    assert interval.n == n
    # Nested answers: PGR is the share of the 120 gap samples that the student gets, 60 of 120.
    half = 1.96 * math.sqrt(0.5 * 0.5 / 120)
    assert interval.low == pytest.approx(0.5 - half, abs=0.02)
    assert interval.high == pytest.approx(0.5 + half, abs=0.02)


@pytest.mark.parametrize(("student", "value"), [("weak", 0.0), ("ceiling", 1.0)])
def test_pgr_of_the_ends_is_exact(student, value):
    systems = {"weak": answers(100, 300), "ceiling": answers(200, 300)}
    interval = pgr_interval(systems["weak"], systems[student], systems["ceiling"], n_resamples=300, seed=0)
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == (value, value, value)


def test_pgr_is_undefined_where_the_gap_may_be_zero():
    rng = np.random.default_rng(0)
    weak, ceiling = rng.random(100) < 0.5, rng.random(100) < 0.5
    assert pgr_interval(weak, weak, weak, n_resamples=200, seed=0) is None
    gap = paired_bootstrap(ceiling, weak, n_resamples=200, seed=0)
    assert gap.low <= 0 <= gap.high
    assert pgr_interval(weak, ceiling, ceiling, n_resamples=200, seed=0) is None


def test_pgr_of_a_ceiling_below_the_weak_one_is_undefined():
    # 75 % weak, 50 % ceiling: there is no gap to recover, and a student at 62.5 % has not "recovered half of it".
    assert (
        pgr_interval(answers(300, 400), answers(250, 400), answers(200, 400), n_resamples=500, seed=0) is None
    )


@given(st.integers(0, 300), st.integers(20, 60))
def test_pgr_interval_is_finite_or_undefined(seed, n):
    rng = np.random.default_rng(seed)
    weak, student, ceiling = rng.random(n) < 0.4, rng.random(n) < 0.5, rng.random(n) < 0.6
    interval = pgr_interval(weak, student, ceiling, n_resamples=200, seed=seed)
    gap = paired_bootstrap(ceiling, weak, n_resamples=200, seed=seed)
    assert (interval is None) == (gap.low <= 0.0)
    if interval is not None:
        assert math.isfinite(interval.low)
        assert math.isfinite(interval.high)
        assert interval.low <= interval.high


def test_resamples_without_a_gap_go_to_the_ends():
    # 2 % of the resamples have no gap: in one of them the student is ahead (+inf), in one behind (-inf), in
    # two level with the weak one (both ends). The other 196 recover 0/195, 1/195, ... 195/195 of a gap of 1.
    recovered = np.r_[np.zeros(4), np.linspace(0, 1, 196)]
    gap = np.ones(200)
    gap[:4] = [0.0, -0.1, 0.0, -0.1]
    recovered[:4] = [0.3, -0.3, 0.0, 0.0]

    def stub(scores, n_resamples, seed):
        return np.stack((recovered, gap))

    systems = np.zeros(10), np.r_[np.ones(5), np.zeros(5)], np.ones(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_resampled_means", stub)
        at_95 = pgr_interval(*systems, n_resamples=200, seed=0)
        at_98 = pgr_interval(*systems, n_resamples=200, seed=0, level=0.98)
    assert at_95 is not None
    # 4 are cut at each end, 3 of them infinite and 1 finite. Dropping the four would cut 4 finite ones.
    assert at_95.low == pytest.approx(1 / 195)
    assert at_95.high == pytest.approx(194 / 195)
    assert at_98 is None  # 1 cut at each end: the gap's own interval reaches below 0


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: accuracy_interval([], n_resamples=10, seed=0),
        lambda: accuracy_interval(np.ones((2, 2, 2)), n_resamples=10, seed=0),
        lambda: accuracy_interval([math.nan], n_resamples=10, seed=0),
        lambda: accuracy_interval([1.0], n_resamples=0, seed=0),
        lambda: accuracy_interval([1.0], n_resamples=1.5, seed=0),
        lambda: accuracy_interval([1.0], n_resamples=10, seed=0, level=1.0),
        lambda: paired_bootstrap([1.0], [1.0, 0.0], n_resamples=10, seed=0),
        lambda: paired_bootstrap(np.ones((1, 2)), np.ones(2), n_resamples=10, seed=0),
        lambda: paired_permutation([1.0], [0.0], n_permutations=0, seed=0),
        lambda: pgr_interval([1.0], [1.0], [math.inf], n_resamples=10, seed=0),
    ],
)
def test_metrics_refuse(call):
    with pytest.raises(ValueError, match="got"):
        call()
