"""What the report says in sentences: no more than the numbers hold."""

from __future__ import annotations

from typing import Any

import pytest

from ensemw2s.runs import report_sentences as sentences
from ensemw2s.runs.report_systems import comparison_of


def test_answer_does_not_decide_when_the_interval_holds_0(results: dict[str, Any]) -> None:
    assert sentences.answers(results)[0] == (
        "The student taught by the ensemble answers 61.2 % (57.2-65.2) of 520 test questions right, the "
        "student taught by a single weak model 58.4 % (54.4-62.4); the difference +2.8 points has a 95 % "
        "interval -1.0..+6.5, so this run does not decide between them."
    )


@pytest.mark.parametrize(
    ("low", "high", "p", "better"),
    [
        (0.01, 0.05, 0.02, "student taught by the ensemble"),
        (-0.05, -0.01, 0.02, "student taught by a single weak model"),
        (0.01, 0.05, 0.06, None),  # the permutation test disagrees with the interval
        (0.0, 0.05, 0.01, None),  # an interval that touches 0 holds it
        (-0.01, 0.05, 0.01, None),
    ],
)
def test_answer_names_the_better_one_only_when_decided(
    results: dict[str, Any], low: float, high: float, p: float, better: str | None
) -> None:
    results["comparisons"]["test"][0] |= {
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "p_value": p,
    }
    end = (
        f"so in this run the {better} is the better one."
        if better
        else "so this run does not decide between them."
    )
    assert sentences.answers(results)[0].endswith(end)


def test_a_comparison_stored_the_other_way_round_is_turned(results: dict[str, Any]) -> None:
    entry = results["comparisons"]["test"][0]
    before = sentences.answers(results)[0]
    entry |= {
        "a": "student_single",
        "b": "student_ensemble",
        "difference": -0.028,
        "low": -0.065,
        "high": 0.01,
    }
    assert sentences.answers(results)[0] == before
    found = comparison_of(results, "test", "student_ensemble", "student_single")
    assert found == {"difference": 0.028, "low": -0.01, "high": 0.065, "p_value": 0.14}


def test_answer_without_stored_comparison_decides_nothing(results: dict[str, Any]) -> None:
    results["comparisons"] = {}
    assert sentences.answers(results)[0].endswith("so it does not decide between them.")


def test_answer_uses_the_level_of_the_intervals(results: dict[str, Any]) -> None:
    results["comparisons"]["test"][0] |= {"low": 0.001, "high": 0.06, "p_value": 0.08}
    assert "90 % interval" in sentences.answers(results, level=0.9)[0]
    assert "is the better one" in sentences.answers(results, level=0.9)[0]
    assert "does not decide" in sentences.answers(results, level=0.95)[0]


def test_two_students_that_are_one_model(results: dict[str, Any]) -> None:
    results["comparisons"]["test"][0] |= {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    assert sentences.answers(results)[0].endswith("0.0..0.0: the two are right on the same questions.")


def test_one_member_and_no_student(one_member_results: dict[str, Any]) -> None:
    [answer] = sentences.answers(one_member_results)
    assert answer.startswith("The ensemble of weak models answers 38.0 %")
    assert answer.endswith("so it does not decide between them.")
    assert "says nothing about voting" in sentences.caveats(one_member_results)[0]
    question = sentences.question(one_member_results)
    assert "voted" not in question
    assert "boosting" not in question
    assert "No strong model was taught" in question


def test_question_counts_those_that_vote(results: dict[str, Any]) -> None:
    question = sentences.question(results, "big model")
    assert "3 weak language models (SmolLM2-135M without layers 12-21)" in question
    assert "2 of them then voted" in question
    assert "1,200 easy questions come with their answers; 900 hard ones do not" in question
    assert "The strong model (big model)" in question
    assert "They then voted" in sentences.question(results | {"selected_rounds": 3})
    assert "One of them then gave" in sentences.question(results | {"selected_rounds": 1})


def test_selection_says_what_decided(results: dict[str, Any]) -> None:
    text = sentences.selection(results)
    assert text.startswith("T = 2 was chosen by the accuracy on easy_val")
    assert "1: 55.0 %, 2: 57.1 %" in text
    assert text.endswith("No question of test or harder had a part in it.")
    fixed = sentences.selection(results | {"selection": {"rule": "fixed", "split": "easy_val", "scores": []}})
    assert fixed == "T = 2: the number of voting members was fixed in the settings."
    assert "every kept member votes" in sentences.selection(
        results | {"selection": {"rule": "all", "split": "easy_val"}}
    )
    assert "No ensemble" in sentences.selection(results | {"selected_rounds": None, "selection": None})


def test_pgr_has_its_interval_or_says_why_not(results: dict[str, Any]) -> None:
    assert sentences.pgr_text(results, "test", "student_ensemble") == "45.3 % (-2.1 to 71.0)"
    assert sentences.pgr_text(results, "harder", "student_single") == sentences.PGR_UNDEFINED
    assert sentences.pgr_text(results, "test", "weak_ensemble") is None
    assert sentences.pgr_text(results | {"ceiling": None}, "test", "student_ensemble") is None
    results["pgr"]["test"]["single"] = {"value": 0.3, "low": None, "high": 0.8}
    assert sentences.pgr_text(results, "test", "student_single") == "30.0 % (unbounded to 80.0)"
    results["ceiling"]["test"] = results["weak_zero_shot"]["test"]
    assert sentences.pgr_text(results, "test", "student_single") == sentences.PGR_NO_GAP
    assert (
        sentences.pgr_sentences(results)[0]
        == f"Performance gap recovered (PGR) on test: {sentences.PGR_NO_GAP}."
    )
    assert (
        "undefined (the interval of ceiling - single is not above 0)" in sentences.pgr_sentences(results)[1]
    )


@pytest.mark.parametrize(("low", "said"), [(0.01, True), (-0.01, False)])
def test_a_single_model_that_is_not_the_best_is_pointed_out(
    results: dict[str, Any], low: float, said: bool
) -> None:
    results["diagnostics"]["first_member"] = {
        "accuracies": [0.6, 0.7],
        "best": 1,
        "difference": 0.1,
        "low": low,
        "high": 0.2,
    }
    text = " ".join(sentences.caveats(results))
    assert ("on easy_val member 2 alone is better (+10.0 points, +1.0 to +20.0)" in text) is said
    # Members that were merged have no other ways to vote to look at.
    assert ("Other ways to vote" in text) is (said and bool(results["diagnostics"].get("votes")))
    results["diagnostics"]["votes"] = []
    merged = " ".join(sentences.caveats(results))
    assert "Other ways to vote" not in merged
    assert ("put its model first" in merged) is said
