"""Dawid-Skene and GLAD: by hand, against crowd-kit, against simulated members, and at their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core.label_models import ChoiceVotes, dawid_skene, glad, plurality

# Four members' answers to twelve questions with three choices, for which crowd-kit 1.4.2 was run to convergence:
# OneCoinDawidSkene(n_iter=500, tol=1e-14) and GLAD(n_iter=50, tol=-1e9, m_step_max_iter=60, m_step_tol=1e-7).
ANSWERS = [
    [2, 1, 2, 2, 1, 2, 2, 0, 0, 0, 2, 2],
    [1, 1, 2, 2, 1, 2, 2, 0, 2, 0, 0, 2],
    [2, 1, 2, 2, 1, 2, 1, 0, 0, 1, 2, 2],
    [0, 2, 1, 2, 0, 2, 2, 0, 0, 1, 1, 0],
]
ONE_COIN_SKILLS = [1.0, 0.75, 0.8333333333, 0.4166666667]
ONE_COIN_PRIORS = [0.25, 0.1666666667, 0.5833333333]
GLAD_ABILITIES = [1.3892775942, 0.5154798345, 0.8629872484, -0.1166435772]
GLAD_LOG_EASINESS = [
    0.6932520703, 1.4961124317, 1.4961124317, 1.2169608919, 1.4961124317, 1.2169608919,
    0.3444735896, 1.2169608919, 0.607308518, 0.3294446165, 0.6932520703, 1.4961124317,
]  # fmt: skip
GLAD_POSTERIORS = {0: [0.0042914088, 0.0151954268, 0.9805131644], 6: [0.0092993434, 0.0628643351, 0.9278363215],
                   8: [0.984971041, 0.0024431076, 0.0125858514], 9: [0.8213540884, 0.1641092459, 0.0145366657]}  # fmt: skip


def votes_from(answers: object, n_choices: object) -> ChoiceVotes:
    """Votes of members that are sure of their answers; only the answers matter here."""
    given = np.asarray(answers)
    counts = np.broadcast_to(np.asarray(n_choices), given.shape[1])
    offsets = np.concatenate(([0], np.cumsum(counts)))
    probs = np.full((given.shape[0], offsets[-1]), 0.01)
    np.put_along_axis(probs, offsets[:-1] + given, 1.0, axis=1)
    return ChoiceVotes.from_probs(probs, offsets, np.ones(given.shape[0]))


def simulate(accuracies: list[float], n: int, n_choices: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_choices, n)
    other = (truth + rng.integers(1, n_choices, (len(accuracies), n))) % n_choices
    return np.where(rng.random(other.shape) < np.array(accuracies)[:, None], truth, other), truth


class TestDawidSkene:
    def test_agrees_with_crowd_kit(self):
        labels = dawid_skene(
            votes_from(ANSWERS, 3), prior_right=0.0, prior_wrong=0.0, class_prior="estimated", tolerance=1e-14
        )
        np.testing.assert_allclose(labels.details["accuracies"], ONE_COIN_SKILLS, atol=1e-8)
        np.testing.assert_allclose(labels.details["class_prior"], ONE_COIN_PRIORS, atol=1e-8)
        np.testing.assert_array_equal(labels.choice, [2, 1, 2, 2, 1, 2, 2, 0, 0, 0, 2, 2])

    def test_a_prior_keeps_every_weight_finite_where_the_likelihood_does_not(self):
        # The plain maximum of the same answers gives member 0 the accuracy 1 and all the say.
        with_prior = dawid_skene(votes_from(ANSWERS, 3))
        assert max(with_prior.details["accuracies"]) < 13.1 / 14
        assert np.abs(with_prior.weights).max() < 4.0
        plain = dawid_skene(votes_from(ANSWERS, 3), prior_right=0.0, prior_wrong=0.0, class_prior="estimated")
        assert plain.weights.max() > 20.0

    def test_members_that_always_agree(self):
        labels = dawid_skene(votes_from([[0, 1, 1], [0, 1, 1]], 2))
        # Fixed point: a = (3 q + 1) / (3 + 2) with q the posterior of the answer, a^2 / (a^2 + (1 - a)^2).
        a = labels.details["accuracies"][0]
        q = a**2 / (a**2 + (1 - a) ** 2)
        assert a == pytest.approx((3 * q + 1) / 5, abs=1e-4)
        assert labels.confidence == pytest.approx([q] * 3, abs=1e-4)

    def test_one_expectation_by_hand(self):
        # One iteration from the shares of the votes (2/3 and 1/3): hits 2/3 + 1, 2/3 + 1, 1/3 + 1 of 2 questions.
        votes = votes_from([[0, 1], [0, 1], [1, 1]], [2, 4])
        labels = dawid_skene(votes, max_iterations=0)
        a = np.array([(5 / 3 + 1) / 4, (5 / 3 + 1) / 4, (4 / 3 + 1) / 4])
        np.testing.assert_allclose(labels.details["accuracies"], a)
        first = np.array([a[0] * a[1] * (1 - a[2]), (1 - a[0]) * (1 - a[1]) * a[2]])
        np.testing.assert_allclose(labels.soft[:2], first / first.sum())
        second = np.array([np.prod((1 - a) / 3), np.prod(a), np.prod((1 - a) / 3), np.prod((1 - a) / 3)])
        np.testing.assert_allclose(labels.soft[2:], second / second.sum())

    def test_priors_and_weights_by_hand(self):
        # As above, with three pseudo-answers right and none wrong: of 2 + 3.
        votes = votes_from([[0, 1], [0, 1], [1, 1]], [2, 4])
        labels = dawid_skene(votes, prior_right=3.0, prior_wrong=0.0, max_iterations=0)
        expected = [(5 / 3 + 3) / 5, (5 / 3 + 3) / 5, (4 / 3 + 3) / 5]
        np.testing.assert_allclose(labels.details["accuracies"], expected)
        # Accuracy 2/3, odds of 2; log(K - 1) is 0 and log 3, and the third question has but one choice.
        votes = votes_from([[0, 1, 0], [0, 1, 0], [1, 1, 0]], [2, 4, 1])
        labels = dawid_skene(votes, max_iterations=0)
        np.testing.assert_allclose(labels.weights[0], math.log(2.0) + math.log(3.0) / 2)
        # One member and one question of two: accuracy 2/3, P(answer) = 1/2, and the prior's 2/3 * 1/3.
        one = dawid_skene(votes_from([[0]], 2), max_iterations=0)
        np.testing.assert_allclose(one.details["log_posteriors"], [-math.log(9.0)])

    @pytest.mark.parametrize("n_choices", [2, 4])
    def test_recovers_the_accuracies_of_independent_members(self, n_choices):
        accuracies = [0.9, 0.75, 0.6, 0.8, 0.65]
        answers, truth = simulate(accuracies, 4000, n_choices, seed=1)
        labels = dawid_skene(votes_from(answers, n_choices))
        np.testing.assert_allclose(labels.details["accuracies"], accuracies, atol=0.03)
        ours = (labels.choice == truth).mean()
        assert ours > (plurality(votes_from(answers, n_choices)).choice == truth).mean()
        # Independent members are what the model assumes, so its confidence is honest.
        assert labels.confidence.mean() == pytest.approx(ours, abs=0.02)

    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.integers(1, 5))
    def test_the_posterior_never_falls(self, seed, n_members):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 5, 12)
        counts[0] = 2
        labels = dawid_skene(votes_from(rng.integers(0, counts, (n_members, 12)), counts))
        assert np.diff(labels.details["log_posteriors"]).min(initial=0.0) >= -1e-9
        assert labels.confidence[counts == 1] == pytest.approx(1.0)

    def test_a_question_with_one_choice_teaches_nothing(self):
        answers, _ = simulate([0.9, 0.7, 0.6], 30, 2, seed=2)
        with_trivial = np.concatenate([answers, np.zeros((3, 10), dtype=int)], axis=1)
        alone = dawid_skene(votes_from(answers, 2))
        both = dawid_skene(votes_from(with_trivial, [2] * 30 + [1] * 10))
        np.testing.assert_allclose(both.details["accuracies"], alone.details["accuracies"], atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prior_right": -1.0}, "prior_right"),
            ({"prior_wrong": math.inf}, "prior_wrong"),
            ({"class_prior": "estimated"}, "same number of choices in every question, got 2 to 3"),
            ({"class_prior": "learned"}, "uniform, estimated"),
        ],
    )
    def test_refuses(self, options, message):
        with pytest.raises(ValueError, match=message):
            dawid_skene(votes_from([[0, 1], [0, 2]], [2, 3]), **options)

    @pytest.mark.parametrize("model", [dawid_skene, glad])
    def test_refuses_questions_without_a_choice(self, model):
        with pytest.raises(ValueError, match="at least 2 choices"):
            model(votes_from([[0, 0]], [1, 1]))


class TestGlad:
    def test_agrees_with_crowd_kit(self):
        labels = glad(votes_from(ANSWERS, 3), tolerance=1e-13)
        np.testing.assert_allclose(labels.details["abilities"], GLAD_ABILITIES, atol=2e-4)
        np.testing.assert_allclose(labels.details["log_easiness"], GLAD_LOG_EASINESS, atol=2e-4)
        soft = labels.soft.reshape(12, 3)
        for question, posterior in GLAD_POSTERIORS.items():
            np.testing.assert_allclose(soft[question], posterior, atol=2e-4)

    @pytest.mark.parametrize(
        ("ability_mean", "ability_sd", "log_easiness_mean", "log_easiness_sd"),
        [(1.0, 1.0, 1.0, 1.0), (0.5, 2.0, 0.3, 0.5)],
    )
    def test_is_stationary(self, ability_mean, ability_sd, log_easiness_mean, log_easiness_sd):
        """The gradient of the log-posterior at the result, written out again, is 0."""
        answers, _ = simulate([0.9, 0.7, 0.6, 0.8], 40, 3, seed=5)
        votes = votes_from(answers, 3)
        labels = glad(
            votes,
            ability_mean=ability_mean,
            ability_sd=ability_sd,
            log_easiness_mean=log_easiness_mean,
            log_easiness_sd=log_easiness_sd,
            tolerance=1e-14,
        )
        ability = np.array(labels.details["abilities"])
        b = np.array(labels.details["log_easiness"])
        hit = labels.soft[votes.offsets[:-1] + answers]
        rest = hit - 1.0 / (1.0 + np.exp(-ability[:, None] * np.exp(b)))
        of_abilities = (rest * np.exp(b)).sum(axis=1) - (ability - ability_mean) / ability_sd**2
        np.testing.assert_allclose(of_abilities, 0.0, atol=1e-3)
        of_easiness = (rest * ability[:, None] * np.exp(b)).sum(axis=0)
        of_easiness -= (b - log_easiness_mean) / log_easiness_sd**2
        np.testing.assert_allclose(of_easiness, 0.0, atol=1e-3)

    def test_orders_members_by_ability_and_questions_by_difficulty(self):
        rng = np.random.default_rng(8)
        ability, easiness = np.array([3.0, 1.5, 1.0, 0.7, 0.5, 0.4]), np.exp(rng.normal(0.5, 1.0, 600))
        truth = rng.integers(0, 3, 600)
        right = rng.random((6, 600)) < 1.0 / (1.0 + np.exp(-ability[:, None] * easiness))
        answers = np.where(right, truth, (truth + rng.integers(1, 3, (6, 600))) % 3)
        labels = glad(votes_from(answers, 3))
        found = np.array(labels.details["abilities"])
        assert list(np.argsort(-found)) == [0, 1, 2, 3, 4, 5]
        assert np.corrcoef(labels.details["log_easiness"], np.log(easiness))[0, 1] > 0.4
        assert (labels.choice == truth).mean() >= (plurality(votes_from(answers, 3)).choice == truth).mean()

    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.integers(1, 5))
    def test_the_posterior_never_falls(self, seed, n_members):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 5, 10)
        counts[0] = 2
        labels = glad(votes_from(rng.integers(0, counts, (n_members, 10)), counts), max_iterations=200)
        assert np.diff(labels.details["log_posteriors"]).min(initial=0.0) >= -1e-9
        assert np.isfinite(labels.details["abilities"]).all()

    def test_a_question_with_one_choice_is_as_easy_as_the_prior_says(self):
        labels = glad(votes_from([[0, 1, 0], [0, 1, 0], [1, 1, 0]], [2, 2, 1]))
        assert labels.details["log_easiness"][2] == 1.0

    @pytest.mark.parametrize("alphas", [[1.0, 1.0], [1.0, 99.0]])
    def test_the_surer_of_two_members_decides_whatever_their_weights(self, alphas):
        assert glad(ChoiceVotes.from_probs([[0.9, 0.1], [0.4, 0.6]], [0, 2], alphas)).choice[0] == 0
        assert glad(ChoiceVotes.from_probs([[0.4, 0.6], [0.9, 0.1]], [0, 2], alphas)).choice[0] == 0
        assert glad(ChoiceVotes.from_probs([[0.6, 0.4], [0.1, 0.9]], [0, 2], alphas)).choice[0] == 1

    def test_refuses_a_prior_without_width(self):
        with pytest.raises(ValueError, match="greater than 0, got 0"):
            glad(votes_from(ANSWERS, 3), ability_sd=0.0)


def test_two_members_that_disagree_are_not_decided_by_the_order_of_the_choices():
    """Both always get the same accuracy; the surer of the two is followed, as plurality does."""
    rng = np.random.default_rng(0)
    n = 400
    truth = rng.integers(0, 2, n)
    scores = np.zeros((2, n, 2))
    for member, accuracy in enumerate((0.9, 0.7)):
        answers = np.where(rng.random(n) < accuracy, truth, 1 - truth)
        scores[member, np.arange(n), answers] = rng.uniform(0.1, 3.0, n)
    votes = ChoiceVotes.from_scores(scores.reshape(2, -1), np.arange(0, 2 * n + 1, 2), np.ones(2))
    found = dawid_skene(votes)
    apart = votes.answers[0] != votes.answers[1]
    assert 50 < apart.sum() < 200
    np.testing.assert_array_equal(found.choice, plurality(votes).choice)
    assert 0.3 < found.choice[apart].mean() < 0.7
    np.testing.assert_allclose(found.confidence[apart], 0.5, atol=1e-9)
