"""Test questions on which two systems disagree, chosen by a fixed rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.runs.report_format import printable, shorten
from ensemw2s.runs.report_systems import BY_KEY, SYSTEMS

if TYPE_CHECKING:
    import pyarrow as pa

_PAIRS = (("student_ensemble", "student_single"), ("weak_ensemble", "weak_single"))
_QUESTION_LIMIT, _ANSWER_LIMIT, _CHOICES_LIMIT = 600, 120, 12


@dataclass(frozen=True)
class Answer:
    """What one system answered, and whether that is the truth."""

    label: str
    text: str
    right: bool


@dataclass(frozen=True)
class Example:
    """One question with all answers to it; long texts are shortened, nothing is escaped yet."""

    id: str
    question: str
    choices: Sequence[str]
    truth: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Disagreement:
    """Questions that one system of a pair answers right and the other wrong.

    Attributes:
        title: which one is right.
        total: how many such questions there are.
        examples: the first of them, in the order of the file.
    """

    title: str
    total: int
    examples: Sequence[Example]


def disagreements(predictions: pa.Table, task: str, per_side: int = 5) -> list[Disagreement]:
    """The first ``per_side`` questions each way that one of two systems has right by :func:`same_answer`.

    The two are the students, or else the ensemble and the single weak model; the other one is wrong.

    Args:
        predictions: columns id, question, choices, truth and one column of answers a system.
        task: "multiple_choice" or "generation".

    Returns:
        Two entries, or none where the predictions hold neither pair.
    """
    columns = set(predictions.column_names)
    pair = next(((a, b) for a, b in _PAIRS if {a, b} <= columns), None)
    if pair is None:
        return []
    rows = predictions.select(["truth", *pair]).to_pylist()
    right = {system: [same_answer(row[system], row["truth"], task) for row in rows] for system in pair}
    found = []
    for winner, loser in (pair, pair[::-1]):
        places = [i for i in range(len(rows)) if right[winner][i] and not right[loser][i]]
        chosen = predictions.take(places[:per_side]).to_pylist() if places else []
        title = f"{BY_KEY[winner].label} right, {BY_KEY[loser].label.lower()} wrong"
        found.append(Disagreement(title, len(places), [_example(row, task) for row in chosen]))
    return found


def same_answer(answer: str | None, truth: str, task: str) -> bool:
    """The rule by which runs score: the very choice; or, for free answers, exact match after normalizing."""
    if answer is None or task == "multiple_choice":
        return answer == truth
    return normalize_answer(answer) == normalize_answer(truth)


def _example(row: Mapping[str, Any], task: str) -> Example:
    answers = []
    for system in SYSTEMS:
        answer = row.get(system.key)
        if answer is not None:
            text = _short(answer, _ANSWER_LIMIT) or "(no answer)"
            answers.append(Answer(system.label, text, same_answer(answer, row["truth"], task)))
    choices = [_short(choice, _ANSWER_LIMIT) for choice in row.get("choices") or ()]
    if len(choices) > _CHOICES_LIMIT:
        choices = [*choices[:_CHOICES_LIMIT], f"… and {len(choices) - _CHOICES_LIMIT:,} more"]
    question = _short(row["question"], _QUESTION_LIMIT)
    return Example(
        _short(str(row["id"]), 60), question, choices, _short(row["truth"], _ANSWER_LIMIT), answers
    )


def _short(text: str, limit: int) -> str:
    return shorten(printable(text.strip()), limit)
