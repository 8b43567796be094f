"""The generator process of :mod:`ensemw2s.data.reasoning`: a request comes in, questions go out."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import sys
from typing import Any, NamedTuple

from ensemw2s.data.samples import normalize_text, stable_hash
from ensemw2s.errors import DataError

# Repeated questions are replaced by further ones, up to this many generated per question asked for.
_TRIES = 20


class Item(NamedTuple):
    """One generated question."""

    question: str
    answer: str
    difficulty: float | None = None


def generate(
    task: str,
    size: int,
    seed: int,
    options: dict[str, Any],
    strip: str | None = None,
    difficulty: str | None = None,
) -> list[Item]:
    """``size`` items of a reasoning-gym task, no question twice.

    Questions are compared as the split check compares them. An item with an empty answer is passed over.

    Raises:
        DataError: unknown task or options, an answer that is no text, a difficulty that is no number, or too few different questions.
    """
    create = _creator(task, options, seed)
    pattern = _pattern(strip)
    found: dict[str, Item] = {}
    position, generated = 0, 0
    while len(found) < size and generated < max(_TRIES * size, 1000):
        # Some tasks refuse an index beyond the size they were made with; some prepare that many in advance.
        generated = 2 * generated or size
        dataset = create(generated)
        while position < generated and len(found) < size:
            question, answer, level = _item(dataset, position, task, difficulty)
            position += 1
            question = pattern.sub("", question).strip()
            if not question:
                raise DataError(f"reasoning_gym task {task}: strip {strip!r} leaves nothing of a question")
            if answer:
                found.setdefault(normalize_text(question), Item(question, answer, level))
    if len(found) < size:
        raise DataError(
            f"reasoning_gym task {task}: only {len(found)} different questions in {position}, {size} asked "
            "for: lower size, or widen the task's options"
        )
    return list(found.values())


def _creator(task: str, options: dict[str, Any], seed: int) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(DATASETS))}"
        raise DataError(f"reasoning_gym has no task {task!r}: {hint}")
    allowed = [
        field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in ("size", "seed")
    ]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        hint = "size and seed are fields of the source itself; " if {"size", "seed"} & set(unknown) else ""
        raise DataError(
            f"reasoning_gym task {task} has no option {', '.join(unknown)}: {hint}known are "
            f"{', '.join(allowed)}"
        )
    # The library seeds question i with seed + i, so that neighbouring seeds would share almost all questions.
    spread = stable_hash(f"{task}:{seed}") % 2**31

    def create(size: int) -> Any:
        try:
            return reasoning_gym.create_dataset(task, seed=spread, size=size, **options)
        except (
            Exception
        ) as error:  # the tasks check their options with assert, ValueError and whatever fails first
            raise DataError(
                f"reasoning_gym task {task} refuses the options {options}: {_reason(error)}"
            ) from error

    return create


def _pattern(strip: str | None) -> re.Pattern[str]:
    try:
        return re.compile(strip if strip is not None else r"(?!)")
    except re.error as error:
        raise DataError(f"reasoning_gym strip {strip!r} is not a regular expression: {error}") from error


def _item(dataset: Any, index: int, task: str, difficulty: str | None) -> Item:
    try:
        item = dataset[index]
    except Exception as error:  # as above: nothing is agreed about what a task raises
        raise DataError(f"reasoning_gym task {task} failed on question {index}: {_reason(error)}") from error
    question, answer = item["question"], item["answer"]
    if not isinstance(answer, str):
        raise DataError(
            f"reasoning_gym task {task} has no single right answer as text ({type(answer).__name__}): choose "
            "another"
        )
    level = None if difficulty is None else _level(item["metadata"], difficulty, task)
    return Item(str(question), answer.strip(), level)


def _level(metadata: dict[str, Any], name: str, task: str) -> float:
    """The number that a field of an item's metadata holds."""
    value = metadata.get(name)
    numbers = [n for n, v in metadata.items() if isinstance(v, int | float) and n != "source_index"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"reasoning_gym task {task}: difficulty {name!r} is no number of a question's metadata; numbers there are "
            f"{', '.join(numbers) or 'none'}"
        )
    return float(value)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


def main() -> None:
    """Answer one request: JSON on standard input, JSON on standard output."""
    # Tasks may print; standard output is for the reply alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as reply:
        os.dup2(2, 1)
        try:
            result: dict[str, Any] = {"items": generate(**json.load(sys.stdin))}
        except DataError as error:
            result = {"error": str(error)}
        json.dump(result, reply)


if __name__ == "__main__":
    main()
