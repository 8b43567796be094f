"""Pools of the members' votes over ragged choices, weights fitted to truth, and the registry of label models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core.label_models import (
    LABEL_MODELS,
    ChoiceVotes,
    Validation,
    best_single,
    dawid_skene,
    em_weights,
    fit_mixture_weights,
    geometric,
    glad,
    label,
    plurality,
    uniform,
    weighted,
)
from ensemw2s.core.voting import choice_scores, mixture_logprob, pick_choice

# Three members, a question with three choices and one with two.
OFFSETS = [0, 3, 5]
PROBS = [[0.5, 0.3, 0.2, 0.9, 0.1], [0.1, 0.6, 0.3, 0.4, 0.6], [0.2, 0.5, 0.3, 0.4, 0.6]]
ALPHAS = [2.0, 1.0, 1.0]


def votes_of(alphas=ALPHAS):
    return ChoiceVotes.from_probs(PROBS, OFFSETS, alphas)


def random_votes(seed: int, n_members: int = 3, n: int = 8) -> ChoiceVotes:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(1, 5, n))))
    return ChoiceVotes.from_scores(
        rng.normal(0, 2, (n_members, offsets[-1])), offsets, rng.random(n_members) + 0.1
    )


def test_probabilities_are_normalized_within_each_question():
    votes = ChoiceVotes.from_probs([[1.0, 1.0, 2.0, 3.0, 1.0]], OFFSETS, [1.0])
    np.testing.assert_allclose(np.exp(votes.logprobs), [[0.25, 0.25, 0.5, 0.75, 0.25]])
    np.testing.assert_array_equal(votes.answers, [[2, 0]])
    np.testing.assert_array_equal(votes.n_choices, [3, 2])


def test_every_name_is_its_own_label_model():
    """A question of three choices and one of two; member 0 alone is right about both (truth: 0 and 0)."""
    own = np.array(PROBS)
    truth = Validation(votes_of(), np.array([0, 0]))
    powers = np.exp(np.array(ALPHAS) / 4 @ np.log(own))
    fitted = np.array(em_weights(votes_of(), truth).soft)
    expected = {
        "weighted": [0.325, 0.425, 0.25, 0.65, 0.35],
        "uniform": own.mean(axis=0),
        "plurality": [1 / 3, 2 / 3, 0.0, 1 / 3, 2 / 3],
        "geometric": np.concatenate([powers[:3] / powers[:3].sum(), powers[3:] / powers[3:].sum()]),
        "best_single": PROBS[0],
        # Member 0 gives the truth the highest probability of both questions: all weight is its.
        "em_weights": PROBS[0],
    }
    assert {"dawid_skene", "glad", *expected} == set(LABEL_MODELS)
    for name, soft in expected.items():
        np.testing.assert_allclose(label(name, votes_of(), truth).soft, soft, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(fitted, PROBS[0], atol=1e-6)
    for name, function in (("dawid_skene", dawid_skene), ("glad", glad)):
        np.testing.assert_array_equal(
            label(name, votes_of(), truth).soft, function(votes_of()).soft, err_msg=name
        )
    assert (label("glad", votes_of(), truth).soft != label("dawid_skene", votes_of(), truth).soft).any()


def test_weighted_by_hand():
    labels = weighted(votes_of())
    expected = [0.325, 0.425, 0.25, 0.65, 0.35]
    np.testing.assert_allclose(labels.soft, expected)
    np.testing.assert_array_equal(labels.choice, [1, 0])
    np.testing.assert_allclose(labels.confidence, [0.425, 0.65])
    assert labels.level == "choices"


def test_uniform_differs_from_weighted_in_the_weights_alone():
    np.testing.assert_allclose(uniform(votes_of()).soft, np.mean(PROBS, axis=0))
    np.testing.assert_allclose(uniform(votes_of()).soft, weighted(votes_of([3.0, 3.0, 3.0])).soft)


@pytest.mark.parametrize("how", ["sum", "mean", "bytes"])
def test_weighted_with_tokens_is_the_vote_of_the_pipeline(how):
    rng = np.random.default_rng(3)
    token_offsets, choice_offsets = [0, 2, 3, 6, 7, 9], OFFSETS
    logprobs, n_bytes = -rng.exponential(2.0, (3, 9)), [4, 2, 9, 3, 5]
    votes = ChoiceVotes.from_token_logprobs(logprobs, token_offsets, choice_offsets, ALPHAS, how, n_bytes)
    scores = choice_scores(mixture_logprob(logprobs, ALPHAS), token_offsets, how, n_bytes)
    chosen, confidence = pick_choice(scores, choice_offsets)
    labels = weighted(votes)
    np.testing.assert_array_equal(labels.choice, chosen)
    np.testing.assert_array_equal(labels.confidence, confidence)
    assert labels.level == "tokens"
    # Each member alone is the vote of that member.
    alone = choice_scores(logprobs[1], token_offsets, how, n_bytes)
    np.testing.assert_allclose(np.exp(votes.logprobs[1, 3:]), np.exp(alone[3:]) / np.exp(alone[3:]).sum())
    assert weighted(votes.calibrated([1.0, 1.0, 1.0])).level == "choices"


def test_geometric_by_hand():
    labels = geometric(votes_of())
    first = np.array(
        [0.5**0.5 * 0.1**0.25 * 0.2**0.25, 0.3**0.5 * 0.6**0.25 * 0.5**0.25, 0.2**0.5 * 0.3**0.5]
    )
    np.testing.assert_allclose(labels.soft[:3], first / first.sum())
    np.testing.assert_array_equal(labels.choice, [1, 0])


def test_a_zero_vetoes_in_the_geometric_pool_only_with_a_weight():
    probs, offsets = [[0.0, 1.0], [0.9, 0.1]], [0, 2]
    np.testing.assert_allclose(geometric(ChoiceVotes.from_probs(probs, offsets, [1.0, 1.0])).soft, [0.0, 1.0])
    np.testing.assert_allclose(geometric(ChoiceVotes.from_probs(probs, offsets, [0.0, 1.0])).soft, [0.9, 0.1])
    all_vetoed = geometric(ChoiceVotes.from_probs([[0.0, 1.0], [1.0, 0.0]], offsets, [1.0, 1.0]))
    np.testing.assert_allclose(all_vetoed.soft, [0.5, 0.5])


def test_plurality_counts_members_and_breaks_ties_by_probability():
    probs = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]]
    labels = plurality(ChoiceVotes.from_probs(probs, [0, 3], [9.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(labels.soft, [0.25, 0.5, 0.25])
    assert (labels.choice[0], labels.confidence[0]) == (1, 0.5)
    tied = plurality(ChoiceVotes.from_probs([[0.6, 0.4], [0.1, 0.9]], [0, 2], [1.0, 1.0]))
    assert (tied.choice[0], tied.confidence[0]) == (1, 0.5)
    even = plurality(ChoiceVotes.from_probs([[0.75, 0.25], [0.25, 0.75]], [0, 2], [1.0, 1.0]))
    assert even.choice[0] == 0


def test_probabilities_never_outweigh_a_vote_in_plurality():
    # Three votes against two, though the choice of the two has the larger mean probability: 0.6, not 0.2.
    probs = [[0.34, 0.33, 0.33]] * 3 + [[0.0, 1.0, 0.0]] * 2
    labels = plurality(ChoiceVotes.from_probs(probs, [0, 3], np.ones(5)))
    assert (labels.choice[0], labels.confidence[0]) == (0, 0.6)


def test_best_single_is_chosen_on_validation():
    # Right answers on validation: member 0 one, member 1 two, member 2 two (ties go to the earlier).
    validation = Validation(
        ChoiceVotes.from_probs(
            [[0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.2, 0.8], [0.6, 0.4, 0.2, 0.8]], [0, 2, 4], ALPHAS
        ),
        np.array([0, 1]),
    )
    labels = best_single(votes_of(), validation)
    np.testing.assert_allclose(labels.soft, PROBS[1])
    np.testing.assert_array_equal(labels.choice, [1, 1])
    assert labels.details == {"member": 1, "validation_accuracy": [0.5, 1.0, 1.0]}


@settings(max_examples=40)
@given(st.integers(0, 500), st.sampled_from(sorted(LABEL_MODELS)))
def test_every_label_model_gives_distributions_and_the_order_of_members_is_free(seed, name):
    votes, on = random_votes(seed), random_votes(seed + 1)
    truth = np.random.default_rng(seed).integers(0, on.n_choices)
    labels = label(name, votes, Validation(on, truth))
    np.testing.assert_allclose(np.add.reduceat(labels.soft, votes.offsets[:-1]), 1.0)
    np.testing.assert_allclose(labels.soft[votes.offsets[:-1] + labels.choice], labels.confidence, rtol=1e-9)
    np.testing.assert_allclose(
        np.maximum.reduceat(labels.soft, votes.offsets[:-1]), labels.confidence, rtol=1e-9
    )
    if name != "best_single":
        order = [2, 0, 1]

        def shuffled(v):
            return ChoiceVotes.from_scores(v.logprobs[order], v.offsets, v.alphas[order])

        other = label(name, shuffled(votes), Validation(shuffled(on), truth))
        np.testing.assert_allclose(other.soft, labels.soft, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LABEL_MODELS))
def test_one_member_labels_by_its_own_choices(name):
    votes = ChoiceVotes.from_probs(PROBS[:1], OFFSETS, [0.7])
    labels = label(name, votes, Validation(votes, np.array([0, 0])))
    np.testing.assert_array_equal(labels.choice, [0, 0])


class TestMixtureWeights:
    def test_two_members_by_hand(self):
        # n_1 questions on which the members give (2/3, 1/3) and n_2 with (1/3, 2/3): f is stationary where
        # n_1 / (1 + w) = n_2 / (2 - w), so w = (2 n_1 - n_2) / (n_1 + n_2).
        p = np.array([[2 / 3] * 5 + [1 / 3] * 4, [1 / 3] * 5 + [2 / 3] * 4])
        fit = fit_mixture_weights(np.log(p), tolerance=1e-12)
        np.testing.assert_allclose(fit.weights, [6 / 9, 3 / 9], atol=1e-5)

    @settings(max_examples=40)
    @given(st.integers(0, 300), st.integers(1, 5), st.sampled_from([0.0, 3.0]))
    def test_the_likelihood_never_falls_and_no_grid_point_beats_the_bound(self, seed, n_members, prior):
        rng = np.random.default_rng(seed)
        p = rng.beta(1.0, 1.0, (n_members, 30))
        fit = fit_mixture_weights(np.log(p), pseudo_answers=prior)
        path = np.array(fit.log_likelihoods)
        assert np.diff(path).min(initial=0.0) >= -1e-12
        assert fit.weights.sum() == pytest.approx(1.0)
        assert fit.gap <= 1e-6
        others = rng.dirichlet(np.ones(n_members), 50)
        values = np.log(others @ p).sum(axis=1) + prior / n_members * np.log(others).sum(axis=1)
        assert values.max() / (30 + prior) <= path[-1] + fit.gap + 1e-12

    def test_a_prior_pulls_the_weights_together(self):
        p = np.array([[0.9] * 10, [0.1] * 10])
        assert fit_mixture_weights(np.log(p)).weights[0] > 0.999
        # Concave with w in (0, 1): 10 * 0.8 / (0.1 + 0.8 w) + 2 / w = 2 / (1 - w) has the root found here.
        w = fit_mixture_weights(np.log(p), pseudo_answers=4.0, tolerance=1e-12).weights[0]
        assert 8.0 / (0.1 + 0.8 * w) + 2.0 / w == pytest.approx(2.0 / (1.0 - w), rel=1e-4)

    def test_tiny_probabilities_do_not_underflow(self):
        p = np.log(np.array([[2 / 3] * 5 + [1 / 3] * 4, [1 / 3] * 5 + [2 / 3] * 4])) - 2000.0
        fit = fit_mixture_weights(p, tolerance=1e-12)
        np.testing.assert_allclose(fit.weights, [6 / 9, 3 / 9], atol=1e-5)

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ([[-1.0, -math.inf], [-1.0, -math.inf]], {}, "question 1 has none"),
            ([[math.nan]], {}, "without NaN"),
            ([-1.0], {}, "non-empty array"),
            ([[-1.0]], {"pseudo_answers": -1.0}, "not negative"),
        ],
    )
    def test_refuses(self, values, options, message):
        with pytest.raises(ValueError, match=message):
            fit_mixture_weights(values, **options)

    def test_labels_are_the_linear_pool_with_the_fitted_weights(self):
        labels = em_weights(votes_of(), Validation(votes_of(), np.array([1, 1])))
        np.testing.assert_allclose(labels.soft, labels.weights @ np.array(PROBS))

    def test_labels_take_the_options_of_the_fit(self):
        p = np.array([[0.9] * 10, [0.1] * 10])
        offsets = np.arange(0, 22, 2)
        votes = ChoiceVotes.from_probs(np.stack([p, 1.0 - p], axis=2).reshape(2, 20), offsets, [1.0, 1.0])
        options = {"pseudo_answers": 4.0, "tolerance": 1e-12}
        labels = em_weights(votes, Validation(votes, np.zeros(10, dtype=int)), **options)
        np.testing.assert_allclose(labels.weights, fit_mixture_weights(np.log(p), **options).weights)
        assert labels.details["gap"] <= 1e-12


class TestRegistry:
    def test_options_are_named_and_checked(self):
        assert LABEL_MODELS["em_weights"].options == ("pseudo_answers", "tolerance")
        assert LABEL_MODELS["weighted"].options == ()
        with pytest.raises(ValueError, match="no option 'prior'; its options: pseudo_answers, tolerance"):
            label("em_weights", votes_of(), Validation(votes_of(), np.array([0, 0])), prior=1.0)
        with pytest.raises(ValueError, match="its options: none"):
            label("weighted", votes_of(), prior=1.0)

    def test_refuses_unknown_names_and_missing_truth(self):
        with pytest.raises(
            ValueError, match=r"label model must be one of weighted, uniform.* got 'majority'"
        ):
            label("majority", votes_of())
        with pytest.raises(ValueError, match="fitted to labelled questions"):
            label("em_weights", votes_of())
        one = ChoiceVotes.from_probs(PROBS[:1], OFFSETS, [1.0])
        with pytest.raises(ValueError, match="the same 3 members, got 1"):
            label("best_single", votes_of(), Validation(one, np.array([0, 0])))

    @pytest.mark.parametrize(
        ("truth", "message"),
        [
            ([0, 2], "question 1 must lie in 0..1, got 2"),
            ([0], "2 questions"),
            ([0.5, 0.0], "one integer"),
            ([-1, 0], "question 0"),
        ],
    )
    def test_refuses_a_truth_that_is_no_choice(self, truth, message):
        with pytest.raises(ValueError, match=message):
            Validation(votes_of(), np.array(truth))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ChoiceVotes.from_probs([[-0.1, 1.1]], [0, 2], [1.0]), "not negative"),
            (lambda: ChoiceVotes.from_scores([[math.nan, 0.0]], [0, 2], [1.0]), "NaN"),
            (lambda: ChoiceVotes.from_scores([[0.0, 0.0]], [0, 3], [1.0]), "end at the number of entries, 2"),
            (lambda: ChoiceVotes.from_scores([[0.0, 0.0]], [0, 2], [1.0, 1.0]), "one entry per member"),
            (lambda: ChoiceVotes.from_scores([0.0, 0.0], [0, 2], [1.0]), r"\(members, choices\)"),
            (lambda: votes_of().calibrated([1.0, 2.0]), "3 positive"),
            (lambda: votes_of().calibrated([1.0, 2.0, 0.0]), "3 positive"),
        ],
    )
    def test_refuses_votes_that_are_none(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


def test_calibrated_votes_by_hand():
    votes = ChoiceVotes.from_probs([[0.8, 0.2]], [0, 2], [1.0]).calibrated([2.0])
    np.testing.assert_allclose(np.exp(votes.logprobs), [[2 / 3, 1 / 3]])


def test_calibrated_members_keep_their_weights():
    votes = ChoiceVotes.from_probs([[0.8, 0.2], [0.3, 0.7]], [0, 2], [3.0, 1.0]).calibrated([1.0, 1.0])
    # (3 * 0.8 + 0.3) / 4
    np.testing.assert_allclose(weighted(votes).soft, [0.675, 0.325])
