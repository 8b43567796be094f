"""Reliability, calibration error, proper scores and the temperature, against hand-made values and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_table,
)
from ensemw2s.core.label_models import ChoiceVotes

CONFIDENCE = [0.95, 0.85, 0.85, 0.35, 0.30]
CORRECT = [1, 1, 0, 0, 1]


class TestReliability:
    def test_equal_width_by_hand(self):
        table = reliability_table(CONFIDENCE, CORRECT, n_bins=5)
        assert [b.n for b in table] == [0, 2, 0, 0, 3]
        assert (table[0].confidence, table[0].accuracy) == (None, None)
        assert (table[1].low, table[1].high) == (0.2, 0.4)
        assert (table[1].confidence, table[1].accuracy) == (pytest.approx(0.325), 0.5)
        assert (table[4].confidence, table[4].accuracy) == (pytest.approx(2.65 / 3), pytest.approx(2 / 3))
        expected = 2 / 5 * 0.175 + 3 / 5 * abs(2.65 / 3 - 2 / 3)
        assert expected_calibration_error(CONFIDENCE, CORRECT, n_bins=5) == pytest.approx(expected)

    def test_a_value_on_an_edge_belongs_to_the_bin_below(self):
        table = reliability_table([0.0, 0.2, 0.6, 1.0], [0, 0, 1, 1], n_bins=5)
        assert [b.n for b in table] == [2, 0, 1, 0, 1]

    def test_equal_mass_by_hand(self):
        table = reliability_table(CONFIDENCE, CORRECT, n_bins=2, binning="mass")
        # The third of five in order is 0.85, which its twin shares.
        assert [(b.high, b.n) for b in table] == [(0.85, 4), (1.0, 1)]
        expected = 4 / 5 * abs(2.35 / 4 - 0.5) + 1 / 5 * 0.05
        assert expected_calibration_error(CONFIDENCE, CORRECT, n_bins=2, binning="mass") == pytest.approx(
            expected
        )

    def test_equal_mass_bins_of_different_values_are_equal(self):
        rng = np.random.default_rng(0)
        values = rng.random(100)
        assert [b.n for b in reliability_table(values, values > 0.5, n_bins=10, binning="mass")] == [10] * 10

    @given(
        st.lists(
            st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()),
            min_size=1,
            max_size=30,
        )
    )
    def test_order_changes_nothing_and_everyone_is_counted(self, pairs):
        for binning in ("width", "mass"):
            tables = []
            for order in (pairs, pairs[::-1]):
                confidence, correct = zip(*order, strict=True)
                tables.append(reliability_table(confidence, correct, n_bins=4, binning=binning))
            assert [b.n for b in tables[0]] == [b.n for b in tables[1]]
            assert sum(b.n for b in tables[0]) == len(pairs)

    def test_agrees_with_scikit_learn(self):
        from sklearn.calibration import calibration_curve

        rng = np.random.default_rng(1)
        confidence = rng.random(300)
        correct = rng.random(300) < confidence**2
        accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
        table = [b for b in reliability_table(confidence, correct, n_bins=10) if b.n]
        np.testing.assert_allclose([b.accuracy for b in table], accuracy)
        np.testing.assert_allclose([b.confidence for b in table], mean)

    def test_perfect_calibration_has_no_error(self):
        assert expected_calibration_error([0.75] * 4, [1, 1, 1, 0]) == 0.0

    @pytest.mark.parametrize(
        ("confidence", "options", "message"),
        [
            ([1.2], {}, "must lie in"),
            ([math.nan], {}, "must lie in"),
            ([], {}, "non-empty"),
            ([0.5], {"n_bins": 0}, "n_bins"),
            ([0.5], {"binning": "log"}, "width, mass"),
        ],
    )
    def test_refuses(self, confidence, options, message):
        with pytest.raises(ValueError, match=message):
            reliability_table(confidence, np.ones(len(confidence)), **options)


class TestScores:
    PROBS, OFFSETS, TRUTH = [0.7, 0.2, 0.1, 0.4, 0.6], [0, 3, 5], [0, 0]

    def test_by_hand(self):
        brier = (0.3**2 + 0.2**2 + 0.1**2 + 0.6**2 + 0.6**2) / 2
        assert brier_score(self.PROBS, self.OFFSETS, self.TRUTH) == pytest.approx(brier)
        nll = -(math.log(0.7) + math.log(0.4)) / 2
        assert negative_log_likelihood(self.PROBS, self.OFFSETS, self.TRUTH) == pytest.approx(nll)
        assert negative_log_likelihood([0.0, 1.0], [0, 2], [0]) == math.inf

    def test_agree_with_scikit_learn(self):
        from sklearn.metrics import brier_score_loss, log_loss

        p, y = np.array([0.9, 0.2, 0.6, 0.3]), np.array([1, 0, 0, 1])
        flat = np.stack([1 - p, p], axis=1).ravel()
        assert brier_score(flat, [0, 2, 4, 6, 8], y) == pytest.approx(2 * brier_score_loss(y, p))
        assert negative_log_likelihood(flat, [0, 2, 4, 6, 8], y) == pytest.approx(log_loss(y, p))

    @pytest.mark.parametrize(
        ("probs", "truth", "message"),
        [
            ([0.7, 0.2, 0.1, 0.4, 0.5], [0, 0], "those of 1 sum to 0.9"),
            ([1.1, -0.2, 0.1, 0.4, 0.6], [0, 0], "not negative"),
            (PROBS, [0, 2], "question 1"),
        ],
    )
    def test_refuse(self, probs, truth, message):
        with pytest.raises(ValueError, match=message):
            brier_score(probs, self.OFFSETS, truth)


def nll_at(scores, offsets, truth, temperature):
    votes = ChoiceVotes.from_scores([np.asarray(scores) / temperature], offsets, [1.0])
    return negative_log_likelihood(np.exp(votes.logprobs[0]), offsets, truth)


class TestTemperature:
    def test_by_hand(self):
        # Always 0.8 for the first of two choices, right in 3 of 4: the best probability is 3/4, so 4^(1/T) = 3.
        scores, offsets = np.log([0.8, 0.2] * 4), np.arange(0, 10, 2)
        fit = fit_temperature(scores, offsets, [0, 0, 0, 1])
        assert fit.temperature == pytest.approx(math.log(4) / math.log(3), rel=1e-8)
        assert fit.nll_after == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        assert fit.nll_before == pytest.approx(-(0.75 * math.log(0.8) + 0.25 * math.log(0.2)))
        assert not fit.at_bound

    @settings(max_examples=60)
    @given(st.integers(0, 10_000), st.floats(0.1, 8.0))
    def test_no_other_temperature_is_better(self, seed, sharpness):
        rng = np.random.default_rng(seed)
        offsets = np.concatenate(([0], np.cumsum(rng.integers(1, 5, 25))))
        scores = sharpness * rng.normal(size=offsets[-1])
        truth = rng.integers(0, np.diff(offsets))
        fit = fit_temperature(scores, offsets, truth)
        assert 0.05 - 1e-12 <= fit.temperature <= 20.0 + 1e-9
        assert fit.nll_after == pytest.approx(nll_at(scores, offsets, truth, fit.temperature))
        near = [max(0.05, 0.99 * fit.temperature), min(20.0, 1.01 * fit.temperature)]
        for other in [*np.geomspace(0.05, 20.0, 30), *near]:
            assert fit.nll_after <= nll_at(scores, offsets, truth, other) + 1e-9

    def test_a_member_that_was_sharpened_is_softened_by_as_much(self):
        rng = np.random.default_rng(0)
        offsets = np.arange(0, 20_001, 4)
        scores = rng.normal(0, 1.5, 20_000)
        p = np.exp(ChoiceVotes.from_scores([scores], offsets, [1.0]).logprobs[0]).reshape(-1, 4)
        truth = (p.cumsum(axis=1) < rng.random((5_000, 1))).sum(axis=1)
        plain, sharp = fit_temperature(scores, offsets, truth), fit_temperature(3.0 * scores, offsets, truth)
        assert plain.temperature == pytest.approx(1.0, abs=0.05)
        assert sharp.temperature == pytest.approx(3.0 * plain.temperature, rel=1e-6)

    def test_limits(self):
        offsets = [0, 2, 4]
        all_right = fit_temperature([1.0, 0.0, 2.0, 0.0], offsets, [0, 0])
        assert (all_right.temperature, all_right.at_bound) == (pytest.approx(0.05), True)
        plain = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-2.0))) / 2
        assert all_right.nll_before == pytest.approx(plain)
        all_wrong = fit_temperature([1.0, 0.0, 2.0, 0.0], offsets, [1, 1], highest=9.0)
        assert (all_wrong.temperature, all_wrong.at_bound) == (pytest.approx(9.0), True)
        silent = fit_temperature([1.0, 1.0, 2.0, 2.0], offsets, [0, 1])
        assert (silent.temperature, silent.at_bound) == (1.0, False)

    def test_a_choice_without_probability(self):
        with_zero = fit_temperature([*np.log([0.8, 0.2]), -math.inf] * 4, np.arange(0, 13, 3), [0, 0, 0, 1])
        assert with_zero.temperature == pytest.approx(math.log(4) / math.log(3), rel=1e-8)
        # Also at the highest temperature, where everything else is nearly even.
        scores, ruled_out = [1.0, 0.0, 2.0, 0.0], [1.0, 0.0, -math.inf, 2.0, 0.0, -math.inf]
        without = fit_temperature(scores, [0, 2, 4], [1, 1])
        assert without.at_bound
        assert fit_temperature(ruled_out, [0, 3, 6], [1, 1]).nll_after == pytest.approx(
            without.nll_after, abs=1e-12
        )
        with pytest.raises(ValueError, match="probability 0"):
            fit_temperature([-math.inf, 0.0], [0, 2], [0])

    @pytest.mark.parametrize(
        ("scores", "options", "message"),
        [
            ([math.nan, 0.0], {}, "NaN"),
            ([0.0, 1.0], {"lowest": 0.0}, "range"),
            ([0.0, 1.0], {"lowest": 30.0}, "range"),
        ],
    )
    def test_refuses(self, scores, options, message):
        with pytest.raises(ValueError, match=message):
            fit_temperature(scores, [0, 2], [0], **options)
