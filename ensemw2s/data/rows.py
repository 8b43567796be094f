"""From the rows of any table to samples: column mapping, validation, ids."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from ensemw2s.config import ColumnsConfig
from ensemw2s.core.utf8 import is_text
from ensemw2s.data.answers import index_of_answer, index_of_class, index_of_label
from ensemw2s.data.files import Row
from ensemw2s.data.samples import Sample, content_id, stable_hash
from ensemw2s.errors import DataError

_MISSING: Final = object()
_FIELD: Final = re.compile(r"\{([^{}]+)\}")


def parse_rows(
    rows: Iterable[Row],
    columns: ColumnsConfig,
    *,
    name: str,
    require_answer: bool = True,
    typed: bool = True,
    limit: int | None = None,
) -> list[Sample]:
    """Samples of a table, in order.

    Args:
        rows: places and values.
        columns: which column holds what.
        name: of the table, for messages.
        require_answer: refuse unlabelled samples.
        typed: False where every cell is a string (CSV): lists are then JSON, and digits may be an index.
        limit: read no more than this many rows.

    Raises:
        DataError: no rows, a row that is not a valid sample, the same id twice, or samples with and without
            choices.
    """
    samples: list[Sample] = []
    places: dict[str, str] = {}
    first_place = ""
    for place, row in islice(rows, limit):
        sample, has_id = parse_row(place, row, columns, require_answer=require_answer, typed=typed)
        if has_id and sample.id in places:
            raise DataError(
                f"duplicate id {sample.id!r}: {places[sample.id]} and {place}: give every sample its own id"
            )
        if not has_id:
            # Equal rows without ids are for the split check to find; here they only need names of their own.
            sample = _with_free_id(sample, places)
        places[sample.id] = place
        if not samples:
            first_place = place
        elif (samples[0].choices is None) != (sample.choices is None):
            first_has = "no choices" if samples[0].choices is None else "choices"
            here_has = "no choices" if sample.choices is None else "choices"
            raise DataError(
                f"{place} has {here_has}, but {first_place} has {first_has}: all samples must be alike"
            )
        samples.append(sample)
    if not samples:
        raise DataError(f"{name} is empty: it has no samples")
    return samples


def _with_free_id(sample: Sample, taken: Mapping[str, str]) -> Sample:
    number = 1
    new_id = sample.id
    while new_id in taken:
        number += 1
        new_id = f"{sample.id}-{number}"
    return Sample(new_id, sample.question, sample.choices, sample.answer, sample.difficulty)


def parse_row(
    place: str, row: Mapping[str, Any], columns: ColumnsConfig, *, require_answer: bool, typed: bool
) -> tuple[Sample, bool]:
    """One sample, and whether its row gives it an id; raises DataError with the place."""
    question = _question(row, columns.question, place)
    raw_answer = _lookup(row, columns.answer)
    if require_answer:
        raw_answer = _column(row, columns.answer, place, "answer")
        if raw_answer is None:
            raise DataError(f"{place}: column {columns.answer!r} is empty: every sample here needs an answer")
    elif raw_answer is _MISSING:
        raw_answer = None
    given_id = _optional(row, columns.id, "id", place)
    choices: tuple[str, ...] | None
    answer: int | str | None
    if columns.distractors:
        choices, answer = _with_distractors(row, raw_answer, given_id, question, columns, place)
    else:
        choices = _choices(row, columns, place, typed)
        answer = _answer(row, raw_answer, choices, columns, place, typed)
    sample_id = content_id(question, choices) if given_id is None else _id(given_id, place)
    difficulty = _difficulty(_optional(row, columns.difficulty, "difficulty", place), place, typed)
    if columns.id is not None and given_id is None:
        raise DataError(
            f"{place}: column {columns.id!r} is empty: give every sample an id, or leave columns.id out"
        )
    return Sample(sample_id, question, choices, answer, difficulty), given_id is not None


def _question(row: Mapping[str, Any], path: str, place: str) -> str:
    """The text of a column, or a template with the texts of the columns in it, empty ones as nothing."""
    if _lookup(row, path) is not _MISSING or not _FIELD.search(path):
        return _text(_column(row, path, place, "question"), place, f"column {path!r}")

    def fill(match: re.Match[str]) -> str:
        value = _column(row, match[1], place, "question")
        present = value is not None and str(value).strip()
        return _text(value, place, f"column {match[1]!r}") if present else ""

    return _text(_FIELD.sub(fill, path).strip(), place, f"the question {path!r}")


def _lookup(row: Mapping[str, Any], path: str) -> Any:
    """Value of a column; ``a.b`` is field b of a record, or of every record in a list of them."""
    if path in row:
        return row[path]
    head, dot, field = path.rpartition(".")
    if not dot:
        return _MISSING
    value = _lookup(row, head)
    if isinstance(value, Mapping):
        return value.get(field, _MISSING)
    if isinstance(value, list) and value and all(isinstance(v, Mapping) and field in v for v in value):
        return [v[field] for v in value]
    return _MISSING


def _column(row: Mapping[str, Any], path: str, place: str, part: str) -> Any:
    value = _lookup(row, path)
    if value is _MISSING:
        there = ", ".join(str(name) for name in row) or "none"
        raise DataError(
            f"{place}: no column {path!r} (columns: {there}): set columns.{part} to the right one"
        )
    return value


def _optional(row: Mapping[str, Any], path: str | None, default: str, place: str) -> Any:
    """A column that must exist when it is named, and is used by its usual name where it exists."""
    return row.get(default) if path is None else _column(row, path, place, default)


def _text(value: Any, place: str, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {what} is {_show(value)}, expected text")
    if not value.strip():
        raise DataError(f"{place}: {what} is empty text")
    if not is_text(value):
        raise DataError(
            f"{place}: {what} holds half of a character pair (\\ud800 to \\udfff), which is no text"
        )
    return value


def _id(value: Any, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, place, "the id")


def _difficulty(value: Any, place: str, typed: bool) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number or (isinstance(value, str) and not typed) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: the difficulty is {_show(value)}, expected a finite number")
    return number


def _list(value: Any, place: str, what: str, typed: bool) -> list[Any]:
    if isinstance(value, str) and not typed:
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f'{place}: {what} is {_show(value)}, expected a JSON list such as ["yes", "no"]'
            ) from error
    if not isinstance(value, list):
        raise DataError(f"{place}: {what} is {_show(value)}, expected a list")
    return value


def _choices(
    row: Mapping[str, Any], columns: ColumnsConfig, place: str, typed: bool
) -> tuple[str, ...] | None:
    if columns.classes is not None:
        return columns.class_words
    value = _optional(row, columns.choices, "choices", place)
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = _column(value, "text", f"{place}, record {columns.choices or 'choices'!r}", "choices")
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        value = [v.get("text") for v in value]
    choices = tuple(
        _text(c, place, f"choice {i}") for i, c in enumerate(_list(value, place, "the choices", typed))
    )
    _check_count(choices, place)
    return choices


def _check_count(choices: Sequence[str], place: str) -> None:
    if len(set(choices)) < 2:
        raise DataError(f"{place}: {len(set(choices))} different choice(s), expected 2 or more")


def _answer(
    row: Mapping[str, Any],
    value: Any,
    choices: tuple[str, ...] | None,
    columns: ColumnsConfig,
    place: str,
    typed: bool,
) -> int | str | None:
    if value is None:
        return None
    if choices is None:
        if not isinstance(value, str):
            raise DataError(
                f"{place}: the answer is {_show(value)} but there are no choices that it could be an index "
                "of: set columns.choices, or write the answer as text"
            )
        return _text(value, place, "the answer")
    if columns.classes is not None:
        return index_of_class(value, columns.classes, place, typed=typed)
    if columns.answer_labels is not None:
        labels = _list(
            _column(row, columns.answer_labels, place, "answer_labels"), place, "the labels", typed
        )
        return index_of_label(value, labels, choices, place)
    return index_of_answer(value, choices, place, typed=typed)


def _with_distractors(
    row: Mapping[str, Any], answer: Any, given_id: Any, question: str, columns: ColumnsConfig, place: str
) -> tuple[tuple[str, ...], int]:
    """Choices from wrong answers and the right one, whose place is drawn by the sample's id."""
    if answer is None:
        raise DataError(
            f"{place}: without an answer there are only wrong choices: unlabelled data needs columns.choices"
        )
    right = _text(answer, place, "the answer")
    cells = [_column(row, name, place, "distractors") for name in columns.distractors]
    # A blank distractor, or one that repeats another or the answer, leaves one choice fewer.
    present = [_text(cell, place, "a distractor") for cell in cells if cell is not None and str(cell).strip()]
    wrong = [text for text in dict.fromkeys(present) if text != right]
    _check_count([*wrong, right], place)
    seed = content_id(question, [*wrong, right]) if given_id is None else _id(given_id, place)
    index = stable_hash(f"place:{seed}") % (len(wrong) + 1)
    return (*wrong[:index], right, *wrong[index:]), index


def _show(value: Any, width: int = 60) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
