"""Synthetic results of runs, as results.json and predictions/{split}.parquet hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NASTY = "<script>alert('x')</script> a | b **bold** [link](http://e.x) `code` & \\pipe $x$ 日本 \x07"


def score(value: float, half: float = 0.04, n: int = 520) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def member(
    t: int, error: float, alpha: float, *, kept: bool = True, out_of_bag: float | None = None
) -> dict[str, Any]:
    return {
        "round": t,
        "base": "SmolLM2-135M without layers 12-21",
        "error": error,
        "errors": {"train": error, "out_of_bag": out_of_bag, "easy_val": error + 0.06},
        "prior_error": 0.81,
        "alpha": alpha,
        "kept": kept,
        "reason": "" if kept else "alpha <= 0: no better than the prior",
        "train_seconds": 83.2,
        "train_tokens": 181_000,
    }


def split(n: int, role: str, tokens: int | None, chance: float | None) -> dict[str, Any]:
    return {"n": n, "target_tokens": tokens, "role": role, "chance": chance, "truncated": 0}


def reliability(confidence: float, accuracy: float) -> dict[str, Any]:
    """Two bins that hold something and one that does not."""
    low = {"low": 0.2, "high": 0.3, "n": 120, "confidence": confidence - 0.2, "accuracy": accuracy - 0.3}
    empty = {"low": 0.3, "high": 0.4, "n": 0, "confidence": None, "accuracy": None}
    high = {"low": 0.9, "high": 1.0, "n": 400, "confidence": confidence + 0.06, "accuracy": accuracy + 0.09}
    gap = abs(confidence - accuracy)
    return {"ece": gap, "confidence": confidence, "accuracy": accuracy, "bins": [low, empty, high]}


def diagnostics() -> dict[str, Any]:
    """Calibration, diversity, shared errors and rounds of the full run."""

    def shared(members: int, questions: int, *counts: int | None) -> dict[str, Any]:
        names = ("labelled", "learned", "corrected", "other", "learned_labelled")
        return {"members": members, "questions": questions, **dict(zip(names, counts, strict=True))}

    return {
        "calibration": {
            "test": {"weak_ensemble": reliability(0.7, 0.548), "ceiling": reliability(0.75, 0.722)},
            "hard_train": {"weak_ensemble": reliability(0.69, 0.522)},
        },
        "diversity": {
            "test": {
                "disagreement": 0.21,
                "double_fault": 0.33,
                "q_statistic": None,
                "kappa": 0.4,
                "answers_differ": 0.3,
                "accuracies": [0.521, 0.51],
            }
        },
        "shared_errors": {
            "test": [
                shared(0, 200, 0, 10, 180, 10, 0),
                shared(1, 120, 60, 50, 60, 10, 40),
                shared(2, 200, 200, 150, 40, 10, 150),
            ]
        },
        "imitation": {
            "test": {
                teacher: {
                    "teacher_wrong": 200,
                    "repeated": 90,
                    "corrected": 80,
                    "other": 30,
                    "teacher_right": 320,
                    "unlearned": 48,
                }
                for teacher in ("single", "ensemble")
            }
        },
        "rounds": [
            {"members": 1, "accuracy": 0.55, "difference": -0.021, "low": -0.05, "high": 0.01},
            {"members": 2, "accuracy": 0.571, "difference": 0.0, "low": 0.0, "high": 0.0},
        ],
    }


def difficulty() -> dict[str, Any]:
    """Two splits, the easy one easier, and the accuracy on two bins of test."""

    def split(n: int, unrated: int, *counts: int) -> dict[str, Any]:
        return {"n": n, "unrated": unrated, "quartiles": [0.0, 0.3, 0.5, 0.8, 1.0], "counts": list(counts)}

    def row(low: float, high: float, **systems: float) -> dict[str, Any]:
        return {"low": low, "high": high, "median": (low + high) / 2, "n": 260, "systems": systems}

    return {
        "edges": [0.0, 0.5, 1.0],
        "splits": {"easy_train": split(1200, 0, 900, 300), "test": split(500, 20, 100, 400)},
        "accuracy": {
            "test": [
                row(0.0, 0.4, weak_single=0.7, ceiling=0.8),
                row(0.5, 1.0, weak_single=0.34, ceiling=0.65),
            ]
        },
    }


def full_results() -> dict[str, Any]:
    """A multiple-choice run of three rounds, the last member dropped, with one out-of-distribution test."""
    values = {
        "weak_zero_shot": (0.262, 0.251),
        "weak_single": (0.521, 0.402),
        "weak_ensemble": (0.548, 0.421),
        "strong_zero_shot": (0.301, 0.288),
        "strong_on_easy": (0.577, 0.466),
        "student_single": (0.584, 0.455),
        "student_ensemble": (0.612, 0.471),
        "ceiling": (0.722, 0.48),
    }
    x = [i / 20 for i in range(21)]
    return {
        "schema": 1,
        "name": "demo",
        "task": "multiple_choice",
        "seed": 7,
        "splits": {
            "easy_train": split(1200, "train", 3600, 0.25),
            "easy_val": split(300, "validation", 900, 0.25),
            "hard_train": split(900, "unlabeled", None, 0.25),
            "test": split(520, "test", None, 0.25),
            "harder": split(240, "further_test", None, 0.2),
        },
        "split_check": {"duplicates_dropped": 4, "same_question_warnings": 2},
        "members": [
            member(1, 0.31, 0.91),
            member(2, 0.42, 0.55, out_of_bag=0.47),
            member(3, 0.84, -0.2, kept=False),
        ],
        "effective_sample_size": [2905.5, 1804.0, 1804.0],
        "n_units": 3600,
        "token_weight": {
            "curve_x": x,
            "curves": [[v**p for v in x] for p in (0.7, 0.5, 0.5)],
            "heaviest": [
                {"sample": "q17", "token": " Paris\n", "context": "The capital is", "times_uniform": 18.25},
                {"sample": "q18", "token": "|", "context": NASTY, "times_uniform": 9.0},
            ],
        },
        "staged": {
            "easy_val": [0.55, 0.571],
            "hard_train": [0.5, 0.522],
            "test": [0.521, 0.548],
            "harder": [0.402, 0.421],
        },
        "selected_rounds": 2,
        "selection": {"rule": "validation", "split": "easy_val", "scores": [0.55, 0.571]},
        **{key: {"test": score(a), "harder": score(b, 0.06, 240)} for key, (a, b) in values.items()},
        "pgr": {
            "test": {
                "single": {"value": 0.313, "low": 0.05, "high": 0.52},
                "ensemble": {"value": 0.453, "low": -0.021, "high": 0.71},
            },
            "harder": {"single": None, "ensemble": None},
        },
        "comparisons": {
            "test": [
                comparison("student_ensemble", "student_single", 0.028, -0.01, 0.065, 0.14),
                comparison("student_ensemble", "strong_on_easy", 0.035, -0.002, 0.07, 0.07),
                comparison("weak_ensemble", "weak_single", 0.027, 0.004, 0.051, 0.021),
            ],
            "harder": [comparison("student_ensemble", "student_single", 0.016, -0.03, 0.06, 0.5)],
        },
        "label_accuracy": {"single": score(0.5, 0.03, 900), "ensemble": score(0.522, 0.03, 900)},
        "diagnostics": diagnostics(),
        "difficulty": difficulty(),
        "warnings": ["The ceiling leaves a gap of 3.1 points only on harder: PGR will be uncertain."],
        "cost": {
            "boosting": {"seconds": 401.2, "tokens": 543_000, "flops": 3.4e14, "device": "cpu"},
            "students": {"seconds": 3805.0, "tokens": 1_900_000, "flops": 1.6e15, "device": "cpu"},
            "report": {"seconds": 2.0, "tokens": None, "flops": None, "device": None},
        },
        "versions": {"torch": "2.13.0", "ray": "2.60.0"},
    }


def comparison(a: str, b: str, difference: float, low: float, high: float, p: float) -> dict[str, Any]:
    return {"a": a, "b": b, "difference": difference, "low": low, "high": high, "p_value": p}


@pytest.fixture
def results() -> dict[str, Any]:
    return full_results()


@pytest.fixture
def one_member_results() -> dict[str, Any]:
    """A generation run with one round and no student: every later stage is null."""
    made = full_results()
    made |= {
        "name": "tiny",
        "task": "generation",
        "members": made["members"][:1],
        "effective_sample_size": [3000.0],
        "token_weight": None,
        "staged": {"easy_val": [0.4], "test": [0.38]},
        "selected_rounds": 1,
        "selection": {"rule": "all", "split": "easy_val", "scores": [0.4]},
        "pgr": {"test": {"single": None, "ensemble": None}},
        "comparisons": {},
        "label_accuracy": {"single": None, "ensemble": None},
        "warnings": [],
        "diagnostics": None,
        "difficulty": None,
        "cost": {},
        "split_check": None,
        "n_units": 3600,
    }
    made["splits"] = {
        name: made["splits"][name] | {"chance": None} for name in ("easy_train", "easy_val", "test")
    }
    for key in (
        "weak_zero_shot",
        "strong_zero_shot",
        "strong_on_easy",
        "student_single",
        "student_ensemble",
        "ceiling",
    ):
        made[key] = None
    for key in ("weak_single", "weak_ensemble"):
        made[key] = {"test": score(0.38)}
    return made


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory: results.json, and predictions of the test split and config.yaml where given."""

    def write(
        results: dict[str, Any], rows: list[dict[str, Any]] | None = None, config: str | None = None
    ) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        if rows is not None:
            (folder / "predictions").mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / "predictions" / "test.parquet")
        if config is not None:
            (folder / "config.yaml").write_text(config, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def nasty() -> str:
    """Text with HTML, Markdown, mathematics, wide and control characters."""
    return NASTY
