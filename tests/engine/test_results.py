"""Which systems the results hold against which, and who teaches whom, in a run on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core.metrics import Interval
from ensemw2s.engine.pool import LocalExecutor
from ensemw2s.engine.results import _compare, _cost
from ensemw2s.engine.tasks import StudentTask

MakeConfig = Callable[..., dict[str, Any]]


def the_three(weak: np.ndarray, student: np.ndarray, ceiling: np.ndarray, **options: Any) -> Interval:
    """In place of the performance gap recovered: the accuracies of those that it is asked of."""
    return Interval(float(weak.mean()), float(student.mean()), float(ceiling.mean()), n=weak.size)


@pytest.fixture(scope="module")
def ran(
    make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[StudentTask]]:
    """The results of a run, and what its students were trained on."""
    config = make_tiny(
        tmp_path_factory.mktemp("results"),
        weak__training__epochs=4,
        weak__training__learning_rate=2e-2,
        boosting={"rounds": 2, "prior": "unigram"},
        vote__rounds="all",
        strong__training__epochs=1,
        strong__training__loss="uncertainty_smoothing",
    )
    tasks: list[StudentTask] = []
    train = LocalExecutor.train_students

    def noting(self: LocalExecutor, given: list[StudentTask], scratch: Path) -> Any:
        tasks.extend(given)
        return train(self, given, scratch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExecutor, "train_students", noting)
        patch.setattr("ensemw2s.engine.results.pgr_interval", the_three)
        # Drawing the report takes longer than all the rest.
        patch.setattr("ensemw2s.runs.report.write_report", lambda run_dir: None)
        return api.run(ExperimentConfig.model_validate(config)).results, tasks


def accuracy(results: dict[str, Any], system: str) -> float:
    value: float = results[system]["test"]["value"]
    return value


@pytest.mark.parametrize("who", ["single", "ensemble"])
def test_the_gap_is_that_of_the_single_model_the_student_and_the_ceiling(
    ran: tuple[dict[str, Any], list[StudentTask]], who: str
) -> None:
    results, _ = ran
    expected = [accuracy(results, system) for system in ("weak_single", f"student_{who}", "ceiling")]
    found = results["pgr"]["test"][who]
    assert [found["value"], found["low"], found["high"]] == pytest.approx(expected)


def test_differences_are_the_first_less_the_second(ran: tuple[dict[str, Any], list[StudentTask]]) -> None:
    results, _ = ran
    for row in results["comparisons"]["test"]:
        difference = accuracy(results, row["a"]) - accuracy(results, row["b"])
        assert row["difference"] == pytest.approx(difference)


def test_a_comparison_by_hand() -> None:
    config = SimpleNamespace(seed=0, evaluation=SimpleNamespace(resamples=100, level=0.95))
    ctx: Any = SimpleNamespace(config=config)
    # Three of four against one of them: never behind.
    right = {"x": np.array([True, True, True, False]), "y": np.array([True, False, False, False])}
    row = _compare(ctx, right, "x", "y")
    assert (row["a"], row["b"], row["difference"]) == ("x", "y", 0.5)
    assert row["low"] >= 0.0


def test_students_of_labels_ask_their_own_teacher_and_those_of_the_truth_nobody(
    ran: tuple[dict[str, Any], list[StudentTask]],
) -> None:
    _, tasks = ran
    assert {task.name: task.teacher for task in tasks} == {
        "ceiling": None,
        "on_easy": None,
        "single": "single",
        "ensemble": "ensemble",
    }


def test_costs_of_a_split_whose_name_ends_another_are_those_of_the_system() -> None:
    def stage(seconds: float) -> Any:
        return SimpleNamespace(info={"cost": {"seconds": seconds, "tokens": 1, "flops": 2.0, "device": "d"}})

    stages = {
        "member-00": stage(8.0),
        "votes-member-00-test": stage(1.0),
        "votes-member-00-hard-test": stage(2.0),
        "votes-member-00-easy_val": stage(4.0),
    }
    ctx: Any = SimpleNamespace(
        store=SimpleNamespace(stages=lambda: stages),
        splits=SimpleNamespace(names=lambda: ["easy_val", "test", "hard-test"]),
    )
    cost = _cost(ctx)
    assert {name: found["seconds"] for name, found in cost.items()} == {
        "member-00": 8.0,
        "votes-member-00": 7.0,
    }
