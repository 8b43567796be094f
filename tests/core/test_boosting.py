"""Formulas by hand-computed values and properties; the loop against scikit-learn's SAMME."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.ensemble import AdaBoostClassifier
from sklearn.tree import DecisionTreeClassifier

from ensemw2s.core.boosting import (
    BoostingState,
    LevelWeights,
    Units,
    choice_prior_error,
    effective_sample_size,
    member_decision,
    member_weight,
    reweight,
    uniform_prior_error,
    unigram_prior_error,
    weighted_error,
)


@st.composite
def weighted_units(draw):
    """(weights, wrong) with at least one unit of positive weight."""
    n = draw(st.integers(1, 30))
    weight = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
    weights = np.array(draw(st.lists(weight, min_size=n, max_size=n)))
    weights[draw(st.integers(0, n - 1))] = draw(st.floats(1e-3, 1.0))
    return weights, np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


# --- weighted_error -------------------------------------------------------------------------------


def test_weighted_error_by_hand():
    assert weighted_error([True, False, True], [0.2, 0.5, 0.3]) == pytest.approx(0.5)
    assert weighted_error([1, 0, 0], [2.0, 3.0, 3.0]) == 0.25  # not normalized
    assert weighted_error(np.zeros(4, bool), np.ones(4)) == 0.0
    assert weighted_error(np.ones(3, bool), np.full(3, 0.1)) == 1.0


@given(weighted_units())
def test_weighted_error_lies_in_the_unit_interval(units):
    weights, wrong = units
    assert 0.0 <= weighted_error(wrong, weights) <= 1.0


@pytest.mark.parametrize(
    ("wrong", "weights", "message"),
    [
        ([True], [0.5, 0.5], "length 2"),
        ([True, False], [0.5, math.nan], "finite"),
        ([True, False], [0.5, math.inf], "finite"),
        ([True, False], [1.5, -0.5], "not negative"),
        ([True, False], [0.0, 0.0], "all 0"),
        ([], [], "non-empty"),
        ([2, 0], [0.5, 0.5], "0 and 1"),
        ([math.nan, 0], [0.5, 0.5], "0 and 1"),
    ],
)
def test_weighted_error_refuses(wrong, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_error(wrong, weights)


# --- member_weight --------------------------------------------------------------------------------


def test_member_weight_by_hand():
    # odds of being right 3, prior odds of being wrong 9: log 27
    assert member_weight(0.25, prior_error=0.9) == pytest.approx(math.log(27.0))
    # SAMME with K = 5: log 3 + log 4
    assert member_weight(0.25, n_classes=5) == pytest.approx(math.log(12.0))
    assert member_weight(0.25, n_classes=5, learning_rate=0.5) == pytest.approx(math.log(12.0) / 2)
    # two classes: the prior term vanishes
    assert member_weight(0.25, n_classes=2) == pytest.approx(math.log(3.0))
    assert member_weight(0.5, n_classes=2) == 0.0


def test_member_weight_is_clipped_at_both_ends():
    assert member_weight(0.0, n_classes=2, eps=0.01) == pytest.approx(math.log(99.0))
    assert member_weight(1.0, n_classes=2, eps=0.01) == pytest.approx(-math.log(99.0))
    assert member_weight(0.5, prior_error=1.0, eps=0.01) == pytest.approx(math.log(99.0))
    assert member_weight(0.5, prior_error=0.0, eps=0.01) == pytest.approx(-math.log(99.0))
    assert member_weight(0.5, n_classes=1000, eps=0.01) == pytest.approx(math.log(99.0))


@given(st.floats(0, 1), st.integers(2, 60_000))
def test_member_weight_of_classes_is_that_of_their_prior_error(error, n_classes):
    by_prior = member_weight(error, prior_error=uniform_prior_error(n_classes))
    assert member_weight(error, n_classes=n_classes) == pytest.approx(by_prior, abs=1e-9)


@given(st.floats(1e-5, 1 - 1e-5), st.floats(1e-5, 1 - 1e-5))
def test_member_weight_is_positive_exactly_below_the_prior(error, prior):
    if abs(error - prior) > 1e-9:
        assert (member_weight(error, prior_error=prior) > 0) == (error < prior)


@pytest.mark.parametrize(
    "arguments",
    [
        {"error": 0.1},
        {"error": 0.1, "prior_error": 0.5, "n_classes": 2},
        {"error": math.nan, "n_classes": 2},
        {"error": -0.1, "n_classes": 2},
        {"error": 1.1, "n_classes": 2},
        {"error": 0.1, "prior_error": math.nan},
        {"error": 0.1, "prior_error": 1.5},
        {"error": 0.1, "n_classes": 1},
        {"error": 0.1, "n_classes": 2.5},
        {"error": 0.1, "n_classes": 2, "learning_rate": -1.0},
        {"error": 0.1, "n_classes": 2, "learning_rate": 0.0},
        {"error": 0.1, "n_classes": 2, "learning_rate": math.nan},
        {"error": 0.1, "n_classes": 2, "learning_rate": math.inf},
        {"error": 0.1, "n_classes": 2, "eps": 0.0},
        {"error": 0.1, "n_classes": 2, "eps": 0.5},
    ],
)
def test_member_weight_refuses(arguments):
    with pytest.raises(ValueError, match="got"):
        member_weight(**arguments)


# --- reweight -------------------------------------------------------------------------------------


def test_reweight_by_hand():
    # 0.25 each, the last one times e^log(3) = 3: masses 1 1 1 3 of 6
    weights = reweight(np.full(4, 0.25), [False, False, False, True], math.log(3.0))
    np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 6, 1 / 2], rtol=1e-14)
    assert weights.dtype == np.float64


@given(weighted_units(), st.floats(-5, 5))
def test_reweight_is_the_normalized_product(units, alpha):
    weights, wrong = units
    product = weights * np.exp(alpha * wrong)
    np.testing.assert_allclose(reweight(weights, wrong, alpha), product / product.sum(), rtol=1e-12)


@given(weighted_units(), st.floats(0, 2000))
def test_reweight_sums_to_one_and_moves_mass_to_wrong_units(units, alpha):
    weights, wrong = units
    updated = reweight(weights, wrong, alpha)
    assert updated.sum() == pytest.approx(1.0, abs=1e-12)
    assert updated.min() >= 0.0
    assert weighted_error(wrong, updated) >= weighted_error(wrong, weights) - 1e-12


@given(weighted_units(), st.floats(-3, 3), st.floats(1, 5), st.randoms(use_true_random=False))
def test_reweight_does_not_depend_on_the_order(units, alpha, max_weight, random):
    weights, wrong = units
    order = np.array(random.sample(range(weights.size), weights.size))
    shuffled = reweight(weights[order], wrong[order], alpha, max_weight=max_weight)
    np.testing.assert_allclose(
        shuffled, reweight(weights, wrong, alpha, max_weight=max_weight)[order], rtol=1e-9, atol=1e-15
    )


def test_mass_of_wrong_units_becomes_the_prior_error():
    rng = np.random.default_rng(0)
    weights, wrong = rng.random(200), rng.random(200) < 0.19
    alpha = member_weight(weighted_error(wrong, weights), prior_error=0.91)
    assert weighted_error(wrong, reweight(weights, wrong, alpha)) == pytest.approx(0.91)


@pytest.mark.parametrize("alpha", [1e3, 1e6, -1e3, -1e6])
def test_reweight_survives_a_large_alpha(alpha):
    updated = reweight([0.5, 0.25, 0.25], [True, False, False], alpha)
    expected = [1.0, 0.0, 0.0] if alpha > 0 else [0.0, 0.5, 0.5]
    np.testing.assert_array_equal(updated, expected)


def test_reweight_keeps_the_only_mass_there_is():
    # The wrong unit has no weight, so there is nothing to move to it, however large alpha is.
    np.testing.assert_array_equal(reweight([1.0, 0.0], [False, True], 1e4), [1.0, 0.0])
    np.testing.assert_array_equal(reweight([1e-300, 1e-310], [True, False], 0.0).round(6), [1.0, 0.0])


def test_reweight_with_all_right_or_all_wrong_only_normalizes():
    for wrong in (np.ones(2, bool), np.zeros(2, bool)):
        np.testing.assert_allclose(reweight([1.0, 3.0], wrong, 7.0), [0.25, 0.75])


def test_cap_by_hand():
    # Cap 2/4 = 0.5. 0.7 is cut by 0.2, shared 2:1:0 over 0.2 0.1 0.0.
    weights = reweight([0.7, 0.2, 0.1, 0.0], np.zeros(4, bool), 1.0, max_weight=2.0)
    np.testing.assert_allclose(weights, [0.5, 1 / 3, 1 / 6, 0.0], rtol=1e-14)


def test_cap_that_pushes_another_unit_over_it():
    # Cap 1.2/3 = 0.4. 0.6 -> 0.4 leaves 0.6 for 0.35 : 0.05, that is 0.525 : 0.075; so 0.35 is capped too.
    weights = reweight([0.6, 0.35, 0.05], np.zeros(3, bool), 1.0, max_weight=1.2)
    np.testing.assert_allclose(weights, [0.4, 0.4, 0.2], rtol=1e-14)


def test_cap_shares_evenly_where_the_rest_has_no_weight():
    weights = reweight([1.0, 0.0, 0.0], [True, False, False], 1.0, max_weight=1.5)
    np.testing.assert_allclose(weights, [0.5, 0.25, 0.25], rtol=1e-14)


@given(weighted_units(), st.floats(0, 40), st.floats(1, 10))
def test_cap_is_respected_and_mass_conserved(units, alpha, max_weight):
    weights, wrong = units
    free = reweight(weights, wrong, alpha)
    capped = reweight(weights, wrong, alpha, max_weight=max_weight)
    limit = max_weight / weights.size
    assert capped.max() <= limit
    assert capped.sum() == pytest.approx(1.0, abs=1e-12)
    below = (capped < limit * (1 - 1e-9)) & (free > 0)
    if below.any() and free[below].min() > 1e-200:
        ratios = capped[below] / free[below]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)  # the uncapped keep their proportions
        assert ratios[0] >= 1 - 1e-9


def test_cap_of_one_gives_uniform_weights():
    for n in (1, 3, 7, 49, 1000):
        weights = np.random.default_rng(n).random(n)
        np.testing.assert_allclose(reweight(weights, weights < 0.3, 2.0, max_weight=1.0), 1 / n, rtol=1e-12)


def test_cap_above_the_largest_weight_changes_nothing():
    weights = np.array([0.3, 0.3, 0.4])
    wrong = [True, False, True]
    np.testing.assert_array_equal(
        reweight(weights, wrong, 0.5, max_weight=3.0), reweight(weights, wrong, 0.5)
    )


@pytest.mark.parametrize(
    ("alpha", "max_weight", "message"),
    [(math.nan, None, "alpha"), (math.inf, None, "alpha"), (1.0, 0.5, "max_weight"), (1.0, math.nan, "max_")],
)
def test_reweight_refuses(alpha, max_weight, message):
    with pytest.raises(ValueError, match=message):
        reweight([0.5, 0.5], [True, False], alpha, max_weight=max_weight)


# --- effective sample size, prior errors, policy --------------------------------------------------


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.full(7, 1 / 7)) == pytest.approx(7.0)
    assert effective_sample_size([0.0, 1.0, 0.0]) == 1.0
    assert effective_sample_size([0.5, 0.25, 0.25]) == pytest.approx(1 / 0.375)
    assert effective_sample_size([2.0, 1.0, 1.0]) == pytest.approx(1 / 0.375)


def test_prior_errors_by_hand():
    assert uniform_prior_error(4) == 0.75
    assert choice_prior_error([4, 4, 2]) == pytest.approx(1 - (0.25 + 0.25 + 0.5) / 3)
    assert unigram_prior_error([5, 5, 7, 9, 5, 7]) == 0.5
    assert unigram_prior_error([3]) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: uniform_prior_error(1),
        lambda: uniform_prior_error(True),
        lambda: choice_prior_error([]),
        lambda: choice_prior_error([4, 1]),
        lambda: choice_prior_error([2.5]),
        lambda: unigram_prior_error([]),
        lambda: unigram_prior_error([0.5]),
    ],
)
def test_prior_errors_refuse(call):
    with pytest.raises(ValueError, match="got"):
        call()


@pytest.mark.parametrize(
    ("alpha", "drops", "policy", "decision"),
    [
        (0.1, 9, "drop", "keep"),
        (0.1, 9, "stop", "keep"),
        (0.0, 0, "drop", "drop"),
        (-1.0, 1, "drop", "drop"),
        (-1.0, 2, "drop", "stop"),
        (0.0, 0, "stop", "stop"),
    ],
)
def test_member_decision(alpha, drops, policy, decision):
    assert member_decision(alpha, drops, 2, policy) == decision


def test_member_decision_refuses():
    with pytest.raises(ValueError, match="nan"):
        member_decision(math.nan, 0, 1)
    with pytest.raises(ValueError, match="drop, stop"):
        member_decision(0.0, 0, 1, "ignore")
    with pytest.raises(ValueError, match="at least 0"):
        member_decision(0.0, 0, -1)


# --- state ----------------------------------------------------------------------------------------


def test_state_goes_through_rounds():
    state = BoostingState.start(Units.build([0, 2, 4]))
    np.testing.assert_array_equal(state.weights, np.full(4, 0.25))
    state = state.update([True, False, False, False], math.log(3.0))
    np.testing.assert_allclose(state.weights, [0.5, 1 / 6, 1 / 6, 1 / 6])
    state = state.drop().drop().update([False, True, False, False], 0.5, 1.5, error=0.3)
    assert state.weights.max() <= 1.5 / 4
    np.testing.assert_array_equal(state.alphas, [math.log(3.0), 0.5])
    np.testing.assert_array_equal(state.errors, [0.25, 0.3])
    assert state.drops == 2


def test_state_refuses_a_useless_member():
    state = BoostingState.start(Units.build([0, 2]))
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="greater than 0"):
            state.update([True, False], alpha)
    with pytest.raises(ValueError, match="error"):
        state.update([True, False], 1.0, error=1.2)


@settings(max_examples=30)
@given(weighted_units(), st.lists(st.floats(1e-3, 5), max_size=4), st.integers(0, 3))
def test_state_is_restored_bit_by_bit(units, alphas, drops):
    weights, wrong = units
    state = BoostingState(LevelWeights.of(weights / weights.sum()), np.empty(0), np.empty(0), drops)
    for alpha in alphas:
        state = state.update(wrong, alpha, 3.0)
    buffer = io.BytesIO()
    np.savez(buffer, **state.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        restored = BoostingState.from_arrays(arrays)
    assert restored.weights.tobytes() == state.weights.tobytes()
    assert restored.alphas.tobytes() == state.alphas.tobytes()
    assert restored.errors.tobytes() == state.errors.tobytes()
    assert restored.drops == state.drops
    further, restored_further = state.update(wrong, 0.7), restored.update(wrong, 0.7)
    assert further.weights.tobytes() == restored_further.weights.tobytes()


def test_state_refuses_broken_arrays():
    arrays = BoostingState.start(Units.build([0, 2])).to_arrays()
    with pytest.raises(ValueError, match="lacks errors"):
        BoostingState.from_arrays({name: array for name, array in arrays.items() if name != "errors"})
    with pytest.raises(ValueError, match="one length"):
        BoostingState.from_arrays({**arrays, "alphas": np.ones(1)})


# --- scikit-learn ---------------------------------------------------------------------------------


class RecordingAdaBoost(AdaBoostClassifier):
    """Keeps the sample weights that every round starts from."""

    def _boost(self, iboost, X, y, sample_weight, random_state):
        self.recorded = [] if iboost == 0 else self.recorded
        self.recorded.append(sample_weight.copy())
        return super()._boost(iboost, X, y, sample_weight, random_state)


@pytest.mark.parametrize(("n_classes", "learning_rate"), [(2, 1.0), (3, 1.0), (4, 0.3)])
def test_same_as_sklearn_adaboost(n_classes, learning_rate):
    n_rounds = 12
    features, labels = make_classification(
        n_samples=300, n_features=6, n_informative=4, n_redundant=0, n_classes=n_classes, random_state=1
    )
    model = RecordingAdaBoost(
        DecisionTreeClassifier(max_depth=1, random_state=0),
        n_estimators=n_rounds,
        learning_rate=learning_rate,
        random_state=0,
    ).fit(features, labels)
    assert len(model.estimators_) == len(model.recorded) == n_rounds

    state = BoostingState.start(Units.build([0, labels.size]))
    for t, estimator in enumerate(model.estimators_):
        np.testing.assert_allclose(state.weights, model.recorded[t], rtol=1e-9, atol=0)
        wrong = estimator.predict(features) != labels
        error = weighted_error(wrong, state.weights)
        state = state.update(wrong, member_weight(error, n_classes=n_classes, learning_rate=learning_rate))
    np.testing.assert_allclose(state.errors, model.estimator_errors_, rtol=1e-9, atol=0)
    np.testing.assert_allclose(state.alphas, model.estimator_weights_, rtol=1e-9, atol=0)
