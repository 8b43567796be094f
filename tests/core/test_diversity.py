"""Diversity of members and what becomes of shared errors, by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core.diversity import Imitation, imitation, pairwise_diversity, shared_errors

TRUTH = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
# N11 = 4, N10 = 3, N01 = 1, N00 = 2; of the two shared errors one is the same wrong answer.
ANSWERS = [[0, 0, 0, 0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1, 2, 0, 1, 1]]


def test_pairs_by_hand():
    pairs = pairwise_diversity(ANSWERS, TRUTH)
    assert pairs.disagreement[0, 1] == pytest.approx(0.4)
    assert pairs.double_fault[0, 1] == pytest.approx(0.2)
    assert pairs.q_statistic[0, 1] == pytest.approx((4 * 2 - 3) / (4 * 2 + 3))
    assert pairs.kappa[0, 1] == pytest.approx(2 * (4 * 2 - 3) / (7 * 5 + 5 * 3))
    assert pairs.answers_differ[0, 1] == pytest.approx(0.5)
    assert pairs.q_statistic[0, 0] == pairs.kappa[1, 1] == 1.0
    assert pairs.means()["q_statistic"] == pytest.approx(5 / 11)


@given(st.integers(0, 1000))
def test_kappa_is_that_of_scikit_learn_and_matrices_are_symmetric(seed):
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(seed)
    truth, answers = rng.integers(0, 3, 12), rng.integers(0, 3, (3, 12))
    pairs = pairwise_diversity(answers, truth)
    hits = answers == truth
    for s, t in ((0, 1), (1, 2)):
        if 0 < hits[s].sum() < 12 or 0 < hits[t].sum() < 12:
            assert pairs.kappa[s, t] == pytest.approx(cohen_kappa_score(hits[s], hits[t]))
    for name in ("disagreement", "double_fault", "q_statistic", "kappa", "answers_differ"):
        np.testing.assert_array_equal(getattr(pairs, name), getattr(pairs, name).T)


def test_measures_without_a_value():
    pairs = pairwise_diversity([[0, 0], [0, 0]], [0, 0])
    assert math.isnan(pairs.q_statistic[0, 1])
    assert math.isnan(pairs.kappa[0, 1])
    assert pairs.means() == {
        "disagreement": 0.0, "double_fault": 0.0, "q_statistic": None, "kappa": None, "answers_differ": 0.0
    }  # fmt: skip
    assert set(pairwise_diversity([[0, 1]], [0, 0]).means().values()) == {None}


def test_shared_errors_by_hand():
    truth = [0, 0, 0, 0, 0, 0]
    answers = [[0, 1, 1, 1, 1, 0], [0, 1, 1, 2, 1, 3], [0, 0, 1, 2, 2, 0], [0, 2, 0, 1, 0, 0]]
    # Largest groups: none; 1 by two; 1 by three; 1 and 2 by two each; 1 by two; 3 by one.
    label, student = [0, 1, 1, 2, 0, 0], [0, 1, 0, 2, 3, 3]
    rows = shared_errors(answers, truth, label=label, student=student)
    assert [(r.members, r.questions) for r in rows] == [(0, 1), (1, 1), (2, 3), (3, 1), (4, 0)]
    by_size = {r.members: r.to_dict() for r in rows}
    assert by_size[2] == {
        "members": 2, "questions": 3, "labelled": 2, "learned": 2, "corrected": 0, "other": 1, "learned_labelled": 2
    }  # fmt: skip
    assert (by_size[3]["labelled"], by_size[3]["learned"], by_size[3]["corrected"]) == (1, 0, 1)
    assert (by_size[1]["labelled"], by_size[1]["learned"]) == (0, 1)
    assert (by_size[0]["learned"], by_size[0]["corrected"]) == (0, 1)


def test_learned_and_labelled_is_counted_question_by_question():
    # Two members agree on a wrong answer twice: once the label is it, the other time the student gives it.
    row = shared_errors([[1, 1], [1, 1]], [0, 0], label=[1, 0], student=[0, 1])[2]
    assert (row.labelled, row.learned, row.learned_labelled) == (1, 1, 0)


def test_an_error_is_learned_from_the_label_only_where_it_is_the_labels_own():
    # Each member has a wrong answer of its own: the label is the one's, and the student gives the other's.
    row = shared_errors([[1], [2]], [0], label=[1], student=[2])[1]
    assert (row.labelled, row.learned, row.learned_labelled) == (1, 1, 0)


def test_texts_and_missing_parts():
    rows = shared_errors([["a", "b"], ["a", "c"]], ["x", "b"], label=["a", "b"])
    assert [(r.members, r.questions, r.labelled, r.learned) for r in rows] == [
        (0, 0, 0, None), (1, 1, 0, None), (2, 1, 1, None)
    ]  # fmt: skip
    assert shared_errors([[0]], [1])[1].labelled is None


@given(st.integers(0, 1000), st.integers(1, 5))
def test_counts_add_up(seed, n_members):
    rng = np.random.default_rng(seed)
    truth, label, student = rng.integers(0, 3, (3, 20))
    rows = shared_errors(rng.integers(0, 3, (n_members, 20)), truth, label=label, student=student)
    assert sum(r.questions for r in rows) == 20
    for row in rows:
        assert row.questions == row.learned + row.corrected + row.other
        assert min(row.labelled, row.learned) >= row.learned_labelled >= 0
        assert row.other >= 0


@pytest.mark.parametrize(("answers", "truth"), [([[0, 1]], [0]), ([0, 1], [0, 1]), ([[]], [])])
def test_refuses(answers, truth):
    with pytest.raises(ValueError, match=r"\(members, questions\)"):
        pairwise_diversity(answers, truth)
    with pytest.raises(ValueError, match=r"\(members, questions\)"):
        shared_errors(answers, truth)


def test_refuses_another_number_of_labels():
    with pytest.raises(ValueError, match="student must have one answer a question"):
        shared_errors([[0, 1]], [0, 1], student=[0])


def test_imitation_by_hand():
    """Teacher right on 2 of 5; of its errors one is repeated, one corrected, one exchanged for another."""
    teacher, student = [True, True, False, False, False], [True, False, False, True, False]
    same = [True, False, True, False, False]
    assert imitation(teacher, student, same) == Imitation(3, 1, 1, 1, 2, 1)
    # Both are right, each in its own words.
    assert imitation([True], [True], [False]) == Imitation(0, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([True], [True, False], [True]), "one entry a question"),
        (([True], [False], [True]), "cannot be right"),
    ],
)
def test_imitation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        imitation(*arguments)
