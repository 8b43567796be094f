"""Diagnostics in the report: what is shown, and that nothing is shown where nothing was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemw2s.runs import figures_reliability, figures_style, report_diagnostics
from ensemw2s.runs.figures_reliability import alt_reliability
from ensemw2s.runs.report_format import NOTHING


def test_confidence_stands_against_accuracy(results: dict[str, Any]) -> None:
    table = report_diagnostics.calibration(results)
    assert table is not None
    assert list(table.rows[0]) == ["test", "Weak ensemble", "70.0 %", "54.8 %", "+15.2", "15.2 %"]
    # The pseudo-labels come last.
    assert [row[:2] for row in table.rows][-1] == ["hard_train", "labels of: weak ensemble"]


def test_shared_errors_say_who_took_them_over(results: dict[str, Any]) -> None:
    (table,) = report_diagnostics.shared(results)
    assert next(iter(table.rows[0])) == "all members right"
    assert list(table.rows[2]) == ["2", "200", "200 (100.0 %)", "150 (75.0 %)", "40 (20.0 %)"]


def test_students_and_their_teachers(results: dict[str, Any]) -> None:
    table = report_diagnostics.imitation(results)
    assert table is not None
    expected = ["test", "Student of the ensemble", "200", "45.0 %", "40.0 %", "15.0 %", "15.0 %"]
    assert list(table.rows[1]) == expected
    results["diagnostics"]["imitation"]["test"]["single"] |= {"teacher_wrong": 0}
    table = report_diagnostics.imitation(results)
    assert table is not None
    assert list(table.rows[0])[2:6] == ["0", NOTHING, NOTHING, NOTHING]


def test_a_measure_without_a_value_is_no_number(results: dict[str, Any]) -> None:
    table = report_diagnostics.diversity(results)
    assert table is not None
    assert list(table.rows[0])[1:5] == ["30.0 %", "21.0 %", "33.0 %", NOTHING]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.05, 0.01, "The choice is flat: on easy_val T = 1 cannot be told from T = 2"),
        (-0.05, -0.01, "every other number of members is clearly different from T = 2"),
    ],
)
def test_how_flat_the_number_of_members_is(
    results: dict[str, Any], low: float, high: float, words: str
) -> None:
    results["diagnostics"]["rounds"][0] |= {"low": low, "high": high}
    assert words in str(report_diagnostics.rounds(results))


def test_the_figure_in_words(results: dict[str, Any]) -> None:
    text = alt_reliability(results)
    assert "test, Ceiling (true hard labels): 55.0 % sure: 42.2 % right of 120" in text
    assert "None" not in text


@pytest.mark.parametrize(("low", "advised"), [(0.01, True), (-0.01, False)])
def test_another_score_of_a_choice_is_advised_where_it_is_better(
    results: dict[str, Any], low: float, advised: bool
) -> None:
    accuracies = {"weak_single": 0.5, "weak_ensemble": 0.6}
    results["diagnostics"]["choice_scores"] = {
        "configured": "sum",
        "accuracy": {
            "easy_val": {"sum": accuracies, "mean": {**accuracies, "weak_ensemble": 0.625}},
            "hard_train": {"sum": accuracies, "mean": accuracies},
        },
        "differences": {"mean": {"difference": 0.025, "low": low, "high": 0.04}},
    }
    table = report_diagnostics.choice_scores(results)
    assert table is not None
    assert [list(row)[:4] for row in table.rows] == [
        ["easy_val", "sum of log-probabilities (this run)", "50.0 %", "60.0 %"],
        ["easy_val", "mean over tokens", "50.0 %", "62.5 %"],
        ["hard_train (the labels)", "sum of log-probabilities (this run)", "50.0 %", "60.0 %"],
        ["hard_train (the labels)", "mean over tokens", "50.0 %", "60.0 %"],
    ]
    text = " ".join(table.notes)
    assert ("+2.5 points, +1.0 to +4.0): try vote.choice_score=mean" in text) is advised


def test_other_ways_to_vote(results: dict[str, Any]) -> None:
    def row(label_model: str, calibrate: bool, *splits: str, configured: bool = False) -> dict[str, Any]:
        gap = 0.0 if configured else 0.013
        found = {"accuracy": 0.6 + gap, "difference": gap, "low": gap - 0.02, "high": gap + 0.02}
        return {
            "label_model": label_model,
            "calibrate": calibrate,
            "configured": configured,
            "splits": dict.fromkeys(splits, found),
        }

    splits = ("easy_val", "hard_train", "test")
    rows = [row("weighted", False, *splits, configured=True), row("em_weights", True, *splits)]
    results["diagnostics"]["votes"] = rows
    table = report_diagnostics.votes(results)
    assert table is not None
    assert list(table.header) == ["vote", "hard_train (the labels)", "easy_val", "test"]
    assert list(table.rows[0]) == ["weighted by the member weights (this run)", "60.0 %", "60.0 %", "60.0 %"]
    other = "61.3 % (+1.3, -0.7 to +3.3)"
    assert list(table.rows[1]) == ["weights fitted to easy_val, calibrated", other, other, other]
    assert len(table.notes) == 1
    results["diagnostics"]["votes"].append(row("glad", False, "test"))
    table = report_diagnostics.votes(results)
    assert table is not None
    assert list(table.rows[2])[:3] == ["GLAD", NOTHING, NOTHING]
    assert "vote.label_model=glad" in " ".join(table.notes)


@pytest.mark.parametrize("diagnostics", [None, {}])
def test_older_results_show_none(results: dict[str, Any], diagnostics: Any) -> None:
    results["diagnostics"] = diagnostics
    assert report_diagnostics.calibration(results) is report_diagnostics.diversity(results) is None
    assert report_diagnostics.shared(results) == []
    assert report_diagnostics.choice_scores(results) is report_diagnostics.votes(results) is None
    assert report_diagnostics.rounds(results) is None
    del results["diagnostics"]
    assert report_diagnostics.calibration(results) is None


def test_the_reliability_plot_has_confidence_below_and_accuracy_at_the_side(results: dict[str, Any]) -> None:
    figure = figures_reliability.reliability(results, figures_style.LIGHT)
    for axes, split in zip(figure.axes, results["diagnostics"]["calibration"], strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("confidence", "answered right")
        drawn = [collection.get_offsets().tolist() for collection in axes.collections]
        stored = [
            [[b["confidence"], b["accuracy"]] for b in found["bins"] if b["n"]]
            for found in results["diagnostics"]["calibration"][split].values()
        ]
        np.testing.assert_allclose(drawn, stored)
        assert (np.array(drawn)[..., 0] != np.array(drawn)[..., 1]).all()
