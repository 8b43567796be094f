"""The systems that a run compares: their order, names for readers, colors; and the order of splits.

One table for all, so that a system has the same name and the same color in every table and figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
"""The content of results.json."""

MAIN_SPLIT = "test"


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Attributes:
        key: name in results.json and column in predictions/{split}.parquet.
        label: name for readers, at most about 32 characters.
        phrase: the same inside a sentence, with its article.
        about: what it is, in plain words.
        group: "weak", "strong", "student" or "ceiling"; neighbours of one group stand together in tables.
        color: hexadecimal color; neighbours stay apart for color-blind readers and on white and on black.
    """

    key: str
    label: str
    phrase: str
    about: str
    group: str
    color: str


SYSTEMS: tuple[System, ...] = (
    System(
        "weak_zero_shot",
        "Weak model as it is",
        "the weak model as it is",
        "the small model before any training here",
        "weak",
        "#9AA0A6",
    ),
    System(
        "weak_single",
        "Single weak model",
        "the single weak model",
        "one small model trained on the easy, labelled questions",
        "weak",
        "#56A9DC",
    ),
    System(
        "weak_ensemble",
        "Weak ensemble",
        "the ensemble of weak models",
        "several small models, trained one after the other, that vote",
        "weak",
        "#1F6FB8",
    ),
    System(
        "strong_zero_shot",
        "Strong model as it is",
        "the strong model as it is",
        "the large model before any training here",
        "strong",
        "#6E757C",
    ),
    System(
        "strong_few_shot",
        "Strong model, few-shot",
        "the strong model shown solved questions",
        "the large model before any training here, with some solved easy questions before each question",
        "strong",
        "#A9812F",
    ),
    System(
        "strong_on_easy",
        "Strong model, easy labels",
        "the strong model taught the easy labels",
        "the large model trained on the easy, labelled questions: the baseline to beat",
        "strong",
        "#C06C9F",
    ),
    System(
        "student_noise",
        "Student of random noise",
        "the student taught labels that are wrong at random",
        "the large model trained on labels of the hard questions that are wrong as often as the ensemble's, but at random; "
        "made from the true answers",
        "student",
        "#5F4B8B",
    ),
    System(
        "student_single",
        "Student of the single model",
        "the student taught by a single weak model",
        "the large model trained on the labels that the single weak model gave to the hard questions",
        "student",
        "#E09F1F",
    ),
    System(
        "student_ensemble",
        "Student of the ensemble",
        "the student taught by the ensemble",
        "the large model trained on the labels that the ensemble gave to the hard questions: the method",
        "student",
        "#D1550F",
    ),
    System(
        "student_preference",
        "Student, second stage",
        "the ensemble's student after its second stage",
        "that student, taught to prefer its own confident answers to the labels that it was not taught",
        "student",
        "#8F2D56",
    ),
    System(
        "ceiling",
        "Ceiling (true hard labels)",
        "the ceiling",
        "the large model trained on the true answers of the hard questions, which nobody has in earnest",
        "ceiling",
        "#0E9A70",
    ),
)

BY_KEY: dict[str, System] = {system.key: system for system in SYSTEMS}

SPLIT_ABOUT = {
    "train": "labelled, easy; the weak models learn from it",
    "validation": "labelled, easy; decides every choice that is made",
    "unlabeled": "hard; gets its labels from the weak models",
    "test": "read once, at the end; decides nothing",
    "further_test": "a further test set; read once, at the end",
    # As results of earlier versions have it, whatever the set was.
    "out_of_distribution": "a further test set; read once, at the end",
}

_SPLIT_ORDER = ("easy_train", "easy_val", "hard_train", MAIN_SPLIT)
_SPLIT_COLORS = ("#9AA0A6", "#0E9A70", "#C06C9F", "#1F6FB8")
_EXTRA_COLORS = ("#D1550F", "#56A9DC", "#E09F1F", "#8667C9")


def ordered_splits(names: Any) -> list[str]:
    """Names of splits in the order of the pipeline, further test sets last by name."""
    known = [name for name in _SPLIT_ORDER if name in names]
    return known + sorted(name for name in names if name not in _SPLIT_ORDER)


def compared_splits(results: Results) -> list[str]:
    """Splits that systems are compared on: role test or further test, ``test`` first."""
    roles = {name: split["role"] for name, split in results["splits"].items()}
    return ordered_splits(
        [name for name, role in roles.items() if role in ("test", "further_test", "out_of_distribution")]
    )


def split_colors(results: Results) -> dict[str, str]:
    """One color per split, the same in every figure of a run."""
    colors = dict(zip(_SPLIT_ORDER, _SPLIT_COLORS, strict=True))
    extra = [name for name in ordered_splits(results["splits"]) if name not in colors]
    return colors | {name: _EXTRA_COLORS[i % len(_EXTRA_COLORS)] for i, name in enumerate(extra)}


def score_of(results: Results, system: str, split: str) -> Mapping[str, Any] | None:
    """``{"value", "low", "high", "n"}`` of a system on a split; None where the stage did not apply."""
    by_split = results.get(system)
    return by_split.get(split) if by_split else None


def comparison_of(results: Results, split: str, a: str, b: str) -> dict[str, float] | None:
    """The paired comparison of ``a`` minus ``b``, turned around where it is stored as ``b`` minus ``a``."""
    for entry in (results.get("comparisons") or {}).get(split) or ():
        if (entry["a"], entry["b"]) == (a, b):
            return {key: float(entry[key]) for key in ("difference", "low", "high", "p_value")}
        if (entry["a"], entry["b"]) == (b, a):
            return {
                "difference": -float(entry["difference"]),
                "low": -float(entry["high"]),
                "high": -float(entry["low"]),
                "p_value": float(entry["p_value"]),
            }
    return None


def chance_name(results: Results) -> str:
    """What ``chance`` is the accuracy of: guessing among choices, or one answer to every question."""
    return "guessing" if results["task"] == "multiple_choice" else "giving the commonest answer"


def weight_unit(results: Results) -> str:
    """What ``n_units`` counts, as far as the counts tell: target tokens, samples, or units in general."""
    split = results["splits"].get("easy_train") or {}
    n_units = results.get("n_units")
    if n_units is not None and n_units == split.get("target_tokens"):
        return "target tokens"
    return "samples" if n_units is not None and n_units == split.get("n") else "units"
