"""Which choice an answer means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemw2s.errors import DataError


def index_of_answer(value: Any, choices: Sequence[str], place: str, *, typed: bool) -> int:
    """Index of the right choice: an integer is the index, a string is the text of a choice.

    Where types are lost (``typed`` False, CSV), digits are a text when a choice has that text and an index
    otherwise; digits that could be both, and differ, are refused.

    Raises:
        DataError: the answer is none of the choices, or more than one.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _checked(value, choices, place)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: the answer is {value!r}, expected an index (integer) or the text of a choice"
        )
    by_text = choices.index(value) if value in choices else None
    is_index = not typed and value.isascii() and value.isdigit() and len(value) < 10
    by_index = int(value) if is_index else None
    if by_text is None and by_index is None:
        hint = ": set columns.answer_labels if it is a label" if len(value) == 1 else ""
        raise DataError(f"{place}: the answer {value!r} is not among the choices {_list(choices)}{hint}")
    if by_text is None:
        return _checked(by_index if by_index is not None else -1, choices, place)
    if by_index is not None and by_index != by_text and by_index < len(choices):
        raise DataError(
            f"{place}: the answer {value!r} is the text of choice {by_text} and the index of "
            f"{choices[by_index]!r}: use JSONL, where types tell them apart"
        )
    return _checked(by_text, choices, place)


def index_of_label(value: Any, labels: Sequence[Any], choices: Sequence[str], place: str) -> int:
    """Index of the choice whose label is the answer; labels and answer are compared as text.

    Raises:
        DataError: labels and choices differ in number, or the answer is not exactly one of the labels.
    """
    names = [str(label) for label in labels]
    if len(names) != len(choices):
        raise DataError(f"{place}: {len(names)} labels for {len(choices)} choices")
    if names.count(str(value)) != 1:
        what = "is not among" if str(value) not in names else "is more than one of"
        raise DataError(f"{place}: the answer {value!r} {what} the labels {_list(names)}")
    return _checked(names.index(str(value)), choices, place)


def index_of_class(value: Any, classes: Sequence[str] | Mapping[str, str], place: str, *, typed: bool) -> int:
    """Index of the class that a label means: the index or the word, or for a mapping one of its keys.

    True and 1.0 are the index 1, as tables write them; keys are compared as text, where True is ``true``.

    Raises:
        DataError: the label is none of the classes.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(classes, Mapping):
        return index_of_answer(int(value) if isinstance(value, bool) else value, classes, place, typed=typed)
    key = str(value).lower() if isinstance(value, bool) else str(value)
    if key not in classes:
        raise DataError(f"{place}: the label {key!r} is not among columns.classes {_list(list(classes))}")
    return list(classes).index(key)


def _checked(index: int, choices: Sequence[str], place: str) -> int:
    if not 0 <= index < len(choices):
        raise DataError(f"{place}: the answer {index} is outside the choices 0 to {len(choices) - 1}")
    # Two equal wrong choices do no harm; two right ones would make a right answer count as wrong.
    if choices.count(choices[index]) > 1:
        raise DataError(
            f"{place}: the right answer {choices[index]!r} is there twice among the choices: remove one"
        )
    return index


def _list(items: Sequence[str], width: int = 120) -> str:
    text = ", ".join(repr(item) for item in items)
    return text if len(text) <= width else text[: width - 3] + "..."
