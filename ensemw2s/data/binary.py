"""Binary classification from the rows of known data sets, in the form of openai/weak-to-strong.

That repository (`weak_to_strong/datasets.py`, of Burns et al., arXiv 2312.09390) makes one statement a question, with the right
answer or a wrong one by the toss of a coin; so no question stands in two splits with both. Here a hash of the question is
the coin: a row becomes the same sample in every order, subset and process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ensemw2s.data.samples import content_id, stable_hash

Row = dict[str, Any]

TRUTH = ("false", "true")
YES_NO = ("no", "yes")
SENTIMENT = ("negative", "positive")
QUALITY = ("bad", "good")

_NONE_OF_THEM = "None of the above choices"


def sciq_binary(row: Row) -> Row:
    """``Q: ... A: ...`` with the right answer or one of the distractors; true or false."""
    names = ("distractor1", "distractor2", "distractor3")
    return _statement(
        "Q: {question} A: {answer}",
        {"question": row["question"]},
        row["correct_answer"],
        [row[name] for name in names],
    )


def cosmosqa(row: Row) -> Row:
    """Context, question and an answer; true or false. "None of the above" is never shown as the right answer."""
    answers = [row[f"answer{i}"] for i in range(4)]
    label = row["label"]
    if label not in range(4):
        # The test set has no truth; the row stays without an answer, which is refused where one is needed.
        return {"question": row["question"], "choices": list(TRUTH), "answer": None}
    made = _statement(
        "Context: {context}\nQuestion: {question}\nAnswer: {answer}",
        {"context": row["context"], "question": row["question"]},
        answers[label],
        answers,
        may_be_right=_NONE_OF_THEM not in answers[label],
    )
    return made | {"id": row["id"]}


def boolq(row: Row) -> Row:
    """Passage and question; yes or no."""
    text = f"Passage: {row['passage']}\nQuestion: {row['question']}"
    return {"question": text, "choices": list(YES_NO), "answer": int(row["answer"])}


def amazon_polarity(row: Row) -> Row:
    """Title and text of a review; positive or negative."""
    text = f"{row['title'] or ''} {row['content'] or ''}".strip()
    return {"question": text, "choices": list(SENTIMENT), "answer": row["label"]}


def anthropic_hh(row: Row) -> Row:
    """A dialogue with the answer that was preferred, or with the one that was not; good or bad."""
    made = _statement("{answer}", {}, row["chosen"], [row["rejected"]])
    return made | {"choices": list(QUALITY)}


#: By built-in name: what makes a sample's question, choices, answer and perhaps id of a row.
MAPPINGS: dict[str, Callable[[Row], Row]] = {
    "sciq_binary": sciq_binary,
    "boolq": boolq,
    "amazon_polarity": amazon_polarity,
    "cosmosqa": cosmosqa,
    "anthropic_hh": anthropic_hh,
}


def _statement(
    template: str, parts: dict[str, str], right: str, answers: Sequence[str | None], may_be_right: bool = True
) -> Row:
    """One true or false statement; wrong answers are those of `answers` that are neither blank nor the right one."""
    wrong = sorted({a for a in answers if a is not None and a.strip() and a != right})
    asked = "\n".join(parts.values())
    key = content_id(asked, [right, *wrong])
    # A question that stands twice with other distractors has one coin. Where no question is asked (a dialogue is an answer) the
    # answers are all there is.
    coin = asked or key
    is_right = not wrong or (may_be_right and stable_hash(f"truth:{coin}") % 2 == 1)
    answer = right if is_right else wrong[stable_hash(f"wrong:{key}") % len(wrong)]
    return {
        "question": template.format(**parts, answer=answer),
        "choices": list(TRUTH),
        "answer": int(is_right),
    }
