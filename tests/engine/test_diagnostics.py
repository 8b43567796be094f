"""Diagnostics in results.json against what the run directory holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.engine import diagnostics
from ensemw2s.engine.answers import Answers
from ensemw2s.engine.diagnostics import _imitation

MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def make_run(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., api.RunResult]:
    cache = tmp_path_factory.mktemp("members")

    def make(**changes: Any) -> api.RunResult:
        settings = {
            "weak__training__epochs": 4,
            "weak__training__learning_rate": 2e-2,
            "boosting": {"rounds": 3, "method": "bagging"},
            "vote__rounds": 2,
            "strong__training__epochs": 1,
            "runtime__cache": str(cache),
        }
        folder = tmp_path_factory.mktemp("diagnostics")
        return api.run(ExperimentConfig.model_validate(make_tiny(folder, **{**settings, **changes})))

    return make


@pytest.fixture(scope="module")
def run(make_run: Callable[..., api.RunResult]) -> api.RunResult:
    return make_run()


def test_calibration_is_that_of_the_stored_answers(run: api.RunResult) -> None:
    calibration = run.results["diagnostics"]["calibration"]
    assert set(calibration) == {"test", "hard_train"}
    predictions = pq.read_table(run.run_dir / "predictions" / "test.parquet").to_pylist()
    for system in ("weak_single", "weak_ensemble", "student_single", "student_ensemble", "ceiling"):
        found = calibration["test"][system]
        assert found["accuracy"] == pytest.approx(np.mean([r[system] == r["truth"] for r in predictions]))
        assert sum(b["n"] for b in found["bins"]) == len(predictions)
        gaps = [b["n"] * abs(b["accuracy"] - b["confidence"]) for b in found["bins"] if b["n"]]
        assert found["ece"] == pytest.approx(sum(gaps) / len(predictions))
    labels = pq.read_table(run.run_dir / "labels" / "ensemble.parquet").to_pylist()
    taught = calibration["hard_train"]["weak_ensemble"]
    assert taught["confidence"] == pytest.approx(np.mean([r["confidence"] for r in labels]))
    assert taught["accuracy"] == pytest.approx(run.results["label_accuracy"]["ensemble"]["value"])


def test_diversity_is_that_of_the_two_that_vote(run: api.RunResult) -> None:
    diversity = run.results["diagnostics"]["diversity"]["test"]
    accuracies = diversity["accuracies"]
    assert len(accuracies) == 2
    assert accuracies[0] == pytest.approx(run.results["weak_single"]["test"]["value"])
    # Right are both, or one of them, or none.
    both_right = 1.0 - diversity["disagreement"] - diversity["double_fault"]
    assert sum(accuracies) == pytest.approx(2 * both_right + diversity["disagreement"])


def test_shared_errors_count_every_question(run: api.RunResult) -> None:
    rows = run.results["diagnostics"]["shared_errors"]["test"]
    n = run.results["splits"]["test"]["n"]
    assert [r["members"] for r in rows] == [0, 1, 2]
    assert sum(r["questions"] for r in rows) == n
    wrong = n - round(run.results["weak_ensemble"]["test"]["value"] * n)
    # Two that vote: whatever wrong answer the vote gives, one of them gave it (or the mixture made it).
    assert sum(r["labelled"] for r in rows) <= wrong
    right = sum(r["corrected"] for r in rows)
    assert right == round(run.results["student_ensemble"]["test"]["value"] * n)


def test_students_are_held_against_their_teachers(run: api.RunResult) -> None:
    rows = pq.read_table(run.run_dir / "predictions" / "test.parquet").to_pylist()
    for teacher, found in run.results["diagnostics"]["imitation"]["test"].items():
        weak, student = f"weak_{teacher}", f"student_{teacher}"
        wrong = [r for r in rows if r[weak] != r["truth"]]
        assert found["teacher_wrong"] == len(wrong) == len(rows) - found["teacher_right"]
        assert found["repeated"] == sum(r[student] == r[weak] for r in wrong)
        assert found["corrected"] == sum(r[student] == r["truth"] for r in wrong)
        assert found["repeated"] + found["corrected"] + found["other"] == len(wrong)
        kept = sum(r[student] == r[weak] == r["truth"] for r in rows)
        assert found["unlearned"] == found["teacher_right"] - kept


def test_the_configured_score_of_a_choice_gives_the_accuracies(run: api.RunResult) -> None:
    found = run.results["diagnostics"]["choice_scores"]
    assert found["configured"] == "mean"
    own = found["accuracy"]["test"]["mean"]
    assert own == pytest.approx({name: run.results[name]["test"]["value"] for name in own})
    labels = found["accuracy"]["hard_train"]["mean"]
    assert labels["weak_ensemble"] == pytest.approx(run.results["label_accuracy"]["ensemble"]["value"])
    assert set(labels) == {"weak_single", "weak_ensemble"}


@pytest.mark.parametrize("how", ["sum", "bytes"])
def test_another_score_of_a_choice_is_that_of_the_stored_scores(run: api.RunResult, how: str) -> None:
    rows = pq.read_table(run.run_dir / "votes" / "test.student-ceiling.parquet").to_pylist()
    truth = pq.read_table(run.run_dir / "predictions" / "test.parquet").to_pylist()
    right = []
    for question in truth:
        own = [row["logprobs"] for row in rows if row["id"] == question["id"]]
        lengths = [1 if how == "sum" else len(f" {text}".encode()) for text in question["choices"]]
        values = [sum(scores) / n for scores, n in zip(own, lengths, strict=True)]
        right.append(question["choices"][int(np.argmax(values))] == question["truth"])
    found = run.results["diagnostics"]["choice_scores"]
    assert found["accuracy"]["test"][how]["ceiling"] == pytest.approx(np.mean(right))
    gap = found["differences"][how]
    easy = {score: found["accuracy"]["easy_val"][score]["weak_ensemble"] for score in ("mean", how)}
    assert gap["difference"] == pytest.approx(easy[how] - easy["mean"])
    assert gap["low"] <= gap["difference"] <= gap["high"]


def test_every_number_of_members_is_compared_with_the_chosen(run: api.RunResult) -> None:
    rows = run.results["diagnostics"]["rounds"]
    assert [r["members"] for r in rows] == [1, 2, 3]
    assert [r["accuracy"] for r in rows] == pytest.approx(run.results["staged"]["easy_val"])
    assert (rows[1]["difference"], rows[1]["low"], rows[1]["high"]) == (0.0, 0.0, 0.0)
    for row in rows:
        assert row["difference"] == pytest.approx(row["accuracy"] - rows[1]["accuracy"])
        assert row["low"] <= row["difference"] <= row["high"]


def test_they_are_plain_json(run: api.RunResult) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((run.run_dir / "results.json").read_text(), parse_constant=refuse)
    text = Path(run.run_dir / "report.md").read_text()
    assert "## Behind the numbers" in text
    assert "Shared errors on test" in text


def test_the_first_member_is_held_against_the_best(run: api.RunResult) -> None:
    found = run.results["diagnostics"]["first_member"]
    # Of the two that vote.
    first, second = found["accuracies"]
    assert first == pytest.approx(run.results["weak_single"]["easy_val"]["value"])
    assert found["best"] == int(second > first)
    assert found["difference"] == pytest.approx(max(first, second) - first)
    assert found["low"] <= found["difference"] <= found["high"]


def test_the_best_of_several_has_a_wider_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was chosen on the same questions: 95 % of all T - 1 intervals at a time (Bonferroni)."""
    levels: list[float] = []
    real = diagnostics.paired_bootstrap

    def noting(*args: Any, **kwargs: Any) -> Any:
        levels.append(kwargs["level"])
        return real(*args, **kwargs)

    monkeypatch.setattr(diagnostics, "paired_bootstrap", noting)
    monkeypatch.setattr(diagnostics, "correct", lambda samples, answers: np.array([answers == "b", True]))
    monkeypatch.setattr(diagnostics, "model_answers", lambda ctx, system, split: system)
    ctx: Any = SimpleNamespace(
        splits={"easy_val": SimpleNamespace(samples=[])},
        config=SimpleNamespace(evaluation=SimpleNamespace(resamples=50, level=0.95), seed=0),
    )
    for systems in (("a",), ("a", "b"), ("a", "b", "c", "d", "e")):
        found = diagnostics._first_member(ctx, SimpleNamespace(systems=systems))  # type: ignore[arg-type]
        assert found["best"] == (systems.index("b") if "b" in systems else 0)
    assert levels == pytest.approx([0.95, 0.95, 0.9875])


def test_the_configured_vote_is_one_of_the_ways_to_vote(run: api.RunResult) -> None:
    (own,) = [row for row in run.results["diagnostics"]["votes"] if row["configured"]]
    assert (own["label_model"], own["calibrate"]) == ("weighted", False)
    assert own["splits"]["test"]["accuracy"] == pytest.approx(run.results["weak_ensemble"]["test"]["value"])
    labels = own["splits"]["hard_train"]
    assert labels["accuracy"] == pytest.approx(run.results["label_accuracy"]["ensemble"]["value"])
    assert (labels["difference"], labels["low"], labels["high"]) == (0.0, 0.0, 0.0)


def test_another_vote_is_that_of_a_run_with_it(
    run: api.RunResult, make_run: Callable[..., api.RunResult]
) -> None:
    label_model, calibrate = "geometric", True
    other = make_run(vote__label_model=label_model, vote__calibrate=calibrate)

    def key(row: dict[str, Any]) -> tuple[str, bool]:
        return row["label_model"], row["calibrate"]

    before, after = ({key(r): r for r in found.results["diagnostics"]["votes"]} for found in (run, other))
    assert set(before) == set(after)
    assert len(before) == 12
    assert [k for k, row in after.items() if row["configured"]] == [(label_model, calibrate)]
    for rule, row in before.items():
        for split, found in row["splits"].items():
            assert found["accuracy"] == after[rule]["splits"][split]["accuracy"]
            gap = found["accuracy"] - before["weighted", False]["splits"][split]["accuracy"]
            assert found["difference"] == pytest.approx(gap)
            assert found["low"] <= found["difference"] <= found["high"]
    voted = before[label_model, calibrate]["splits"]
    assert other.results["weak_ensemble"]["test"]["value"] == pytest.approx(voted["test"]["accuracy"])
    assert other.results["label_accuracy"]["ensemble"]["value"] == pytest.approx(
        voted["hard_train"]["accuracy"]
    )


def test_ways_to_vote_of_a_run_with_its_own(
    make_run: Callable[..., api.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemw2s.engine.other_votes.LARGEST_GLAD", 1)
    rows = make_run(vote__label_model="plurality", vote__calibrate=True).results["diagnostics"]["votes"]
    # Temperatures change no member's own choice; the run's own vote is shown all the same.
    assert len(rows) == 13
    assert (rows[0]["label_model"], rows[0]["calibrate"], rows[0]["configured"]) == ("plurality", True, True)
    assert [row["label_model"] for row in rows if not row["splits"]] == ["glad"]


def test_free_answers_in_other_letters_are_repeated() -> None:
    samples = [Sample(f"q{i}", "Which color?", None, "blue") for i in range(4)]
    ctx: Any = SimpleNamespace(splits={"test": SimpleNamespace(samples=samples)})

    def given(*texts: str) -> Answers:
        return Answers(texts, np.ones(len(texts)))

    answers = {
        "weak_single": given("Red.", "red", "red", "Blue"),
        "student_single": given("red", "blue", "green", "blue."),
    }
    found = _imitation(ctx, "test", answers, "single")
    assert (found["teacher_wrong"], found["repeated"], found["corrected"], found["other"]) == (3, 1, 1, 1)
    assert (found["teacher_right"], found["unlearned"]) == (1, 0)
