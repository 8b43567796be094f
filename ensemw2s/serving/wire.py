"""Answers as OpenAI's clients read them: choices, log-probabilities, usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemw2s.engine.decoding.messages import Finish, StepOutput
from ensemw2s.engine.decoding.text import beginnings
from ensemw2s.serving.prompts import token_text
from ensemw2s.serving.protocol import LabelResult, ServedModel, TextScores
from ensemw2s.serving.rows import Answer

# JSON has no infinity; this is what other servers of this interface write for a probability of 0.
LOWEST = -9999.0

Scored = tuple[int, float | None, Sequence[tuple[int, float]], int]
"""a token, its log-probability (None for a text's first), the most probable tokens with theirs, and where its text
begins"""


def head(kind: str, model: ServedModel, prefix: str) -> dict[str, Any]:
    """What every answer begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": None,
    }


def finish_reason(finish: Finish | None) -> str | None:
    """End-of-text and stop strings are both ``stop`` there."""
    return "stop" if finish == "eos" else finish


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read (every prompt once) and voted (end-of-text included)."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def voters(model: ServedModel, answers: Sequence[int]) -> dict[str, int]:
    """Members, and the fewest of them that voted on any part of the answer."""
    return {"members": len(model.members), "voted": min(answers, default=len(model.members))}


def voted_header(voted: dict[str, int]) -> dict[str, str]:
    """The same for programs that look at heads only."""
    return {"x-ensemw2s-members": f"{voted['voted']}/{voted['members']}"}


def label_data(ids: Sequence[str], results: Sequence[LabelResult]) -> list[dict[str, Any]]:
    """The ``data`` of ``/v1/label``."""
    return [
        {
            "index": i,
            "id": id_,
            "choice": r.choice,
            "label": r.text,
            "confidence": r.confidence,
            "scores": list(r.scores) if r.choice is not None else None,
            "votes": dict(r.votes) if r.votes is not None else None,
        }
        for i, (id_, r) in enumerate(zip(ids, results, strict=True))
    ]


def voters_of(step: StepOutput) -> int:
    """Members that voted on one token."""
    return sum(1 for say in step.decision.members if say is not None)


def text_begins(model: ServedModel, ids: np.ndarray) -> list[int]:
    """Where the text of each token of a prompt begins, special tokens being text."""

    def decode(tokens: list[int]) -> str:
        return str(model.tokenizer.decode(tokens, skip_special_tokens=False))

    return beginnings(decode, ids.tolist())


def scored_prompt(ids: np.ndarray, scores: TextScores, begins: Sequence[int]) -> list[Scored]:
    """The tokens of a prompt with their scores."""
    first: list[Scored] = [(int(ids[0]), None, (), begins[0])]
    rest = zip(ids[1:], scores.logprobs, scores.top, begins[1:], strict=True)
    return first + [(int(token), float(value), top, begin) for token, value, top, begin in rest]


def scored_step(step: StepOutput, offset: int = 0) -> Scored:
    """A voted token with its scores; `offset` characters stand before the answer."""
    top = [(token, float(np.log(max(p, 1e-300)))) for token, p in step.decision.top]
    return step.decision.token, step.decision.logprob, top, offset + step.begins


def scored_answer(answer: Answer, offset: int = 0) -> list[Scored]:
    """The tokens of an answer, end-of-text included (it was voted, too), without those of a stop string."""
    stopped = answer.finish == "stop"
    return [scored_step(s, offset) for s in answer.steps if not stopped or s.begins < len(answer.text)]


def completion_logprobs(model: ServedModel, scored: Sequence[Scored], n: int) -> dict[str, Any]:
    """The ``logprobs`` of ``/v1/completions``.

    Args:
        scored: tokens.
        n: alternatives of each.
    """
    tokens, values, tops, offsets = [], [], [], []
    for token, value, top, begin in scored:
        text = token_text(model, token)
        tokens.append(text)
        values.append(None if value is None else max(value, LOWEST))
        tops.append(None if value is None else _top_by_text(model, top[:n], text, value))
        offsets.append(begin)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _top_by_text(
    model: ServedModel, top: Sequence[tuple[int, float]], text: str, value: float
) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, logprob in top:
        # Different tokens may read the same (parts of characters): the most probable one stands for them.
        found.setdefault(token_text(model, token), max(logprob, LOWEST))
    found.setdefault(text, max(value, LOWEST))
    return found


def chat_logprobs(model: ServedModel, scored: Sequence[Scored], n: int) -> dict[str, Any]:
    """The ``logprobs`` of ``/v1/chat/completions``."""
    content = []
    for token, value, top, _ in scored:
        entry = _chat_token(model, token, 0.0 if value is None else value)
        entry["top_logprobs"] = [_chat_token(model, other, logprob) for other, logprob in top[:n]]
        content.append(entry)
    return {"content": content, "refusal": None}


def _chat_token(model: ServedModel, token: int, logprob: float) -> dict[str, Any]:
    text = token_text(model, token)
    return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(text.encode("utf-8", "replace"))}
