"""The chunks of a streamed answer; joined, they are the answer that is not streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from ensemw2s.engine.decoding.messages import StepOutput
from ensemw2s.serving import wire
from ensemw2s.serving.plans import Plan
from ensemw2s.serving.rows import Answer
from ensemw2s.serving.stream import event

Kind = Literal["completion", "chat"]
Batch = Sequence[tuple[int, StepOutput]]


class EventWriter(Protocol):
    """Turns the steps of a request into events."""

    @property
    def spoken(self) -> int:
        """Tokens voted so far."""

    @property
    def texts(self) -> list[str]:
        """Answers so far."""

    def voted(self, batch: Batch) -> list[int]:
        """How many members voted on each token of a batch."""

    def opening(self) -> bytes:
        """What comes before the first token."""

    def batch(self, batch: Batch) -> bytes:
        """Events for steps that came together."""

    def ending(self) -> bytes:
        """What comes after the last token."""


class StreamWriter:
    """Turns steps into the events of OpenAI's interface.

    Args:
        kind: whose shape.
        plan: what was asked for.
        include_usage: end with a chunk of token counts.
    """

    def __init__(self, kind: Kind, plan: Plan, include_usage: bool) -> None:
        self._kind, self._plan, self._include_usage = kind, plan, include_usage
        chat = kind == "chat"
        object_, prefix = ("chat.completion.chunk", "chatcmpl") if chat else ("text_completion", "cmpl")
        self._head = wire.head(object_, plan.model, prefix)
        self._rows = [_Row() for _ in plan.rows]

    @property
    def spoken(self) -> int:
        """Tokens voted so far."""
        return sum(len(row.answer.steps) for row in self._rows)

    @property
    def texts(self) -> list[str]:
        """Answers so far."""
        return [row.answer.text for row in self._rows]

    def voted(self, batch: Batch) -> list[int]:
        """How many members voted on each token of a batch."""
        return [wire.voters_of(step) for _, step in batch]

    def opening(self) -> bytes:
        """What comes before the first token."""
        if self._kind == "completion":
            return b""
        delta = {"role": "assistant", "content": "", "refusal": None}
        choices = [
            {"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in self._indices
        ]
        return b"".join(self._event([choice]) for choice in choices)

    def batch(self, batch: Batch) -> bytes:
        """Events for steps that came together, one a row."""
        changed: dict[int, str] = {}
        for index, step in batch:
            row = self._rows[index]
            changed[index] = changed.get(index, "") + step.text
            row.answer.add(step)
        events = []
        for index, text in changed.items():
            row = self._rows[index]
            scored = row.release()
            if text or scored or row.answer.finish is not None:
                events.append(self._event([self._choice(index, text, scored)]))
        return b"".join(events)

    def ending(self) -> bytes:
        """What comes after the last token."""
        if not self._include_usage:
            return b""
        voted = [row.answer.voters for row in self._rows if row.answer.voters is not None]
        extra = {
            "usage": wire.usage(self._plan.prompt_tokens, self.spoken),
            "ensemw2s": wire.voters(self._plan.model, voted),
        }
        return event({**self._head, "choices": [], **extra})

    @property
    def _indices(self) -> range:
        return range(len(self._rows))

    def _choice(self, index: int, text: str, scored: list[StepOutput]) -> dict[str, Any]:
        row, plan = self._rows[index], self._plan
        reason = wire.finish_reason(row.answer.finish)
        entries = [wire.scored_step(step) for step in scored]
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if self._kind == "chat":
            choice["delta"] = {"content": text} if text else {}
            if plan.logprobs is not None and entries:
                choice["logprobs"] = wire.chat_logprobs(plan.model, entries, plan.logprobs)
            return choice
        choice["text"] = text
        if plan.logprobs is not None and entries:
            choice["logprobs"] = wire.completion_logprobs(plan.model, entries, plan.logprobs)
        return choice

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head, "choices": choices, **usage})


class _Row:
    """One answer, and which of its tokens have been sent.

    A token is sent with the text that it begins: one that may yet turn out to belong to a stop string waits.
    """

    def __init__(self) -> None:
        self.answer = Answer()
        self.sent = 0

    def release(self) -> list[StepOutput]:
        """Steps whose tokens can be sent now."""
        answer = self.answer
        end = len(answer.steps)
        if answer.finish in (None, "stop"):
            while end > self.sent and answer.steps[end - 1].begins >= len(answer.text):
                end -= 1
        ready = answer.steps[self.sent : end]
        self.sent = max(self.sent, end)
        return ready
