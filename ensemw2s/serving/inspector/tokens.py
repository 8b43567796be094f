"""An answer of the page: its steps, those that are kept from an earlier answer first, and the events that tell them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ensemw2s.engine.decoding.messages import Decision, StepOutput
from ensemw2s.engine.decoding.text import TextStream, beginnings
from ensemw2s.serving import wire
from ensemw2s.serving.errors import invalid
from ensemw2s.serving.inspector.plans import AnswerPlan
from ensemw2s.serving.prompts import token_text
from ensemw2s.serving.protocol import Backend
from ensemw2s.serving.rows import Answer, decode_rows
from ensemw2s.serving.stream import event
from ensemw2s.serving.stream_chunks import Batch


class TokenStream:
    """Decodes one answer and writes an event a token; an :class:`~ensemw2s.serving.stream_chunks.EventWriter`.

    Args:
        backend: who votes.
        plan: what is asked for.
    """

    def __init__(self, backend: Backend, plan: AnswerPlan) -> None:
        self._backend, self._plan, self._model = backend, plan, plan.plan.model
        self._answer = Answer()
        self._kept = 0
        self._pieces = TextStream(self._decode_all)
        self._names: dict[int, str] = {}
        self._special = frozenset(int(i) for i in self._model.tokenizer.all_special_ids)

    def _decode_all(self, ids: list[int]) -> str:
        return str(self._model.tokenizer.decode(ids, skip_special_tokens=False))

    def _decode_shown(self, ids: list[int]) -> str:
        return str(self._model.tokenizer.decode(ids, skip_special_tokens=True))

    # -- the steps -------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncGenerator[Batch]:
        """The steps as they come.

        Raises:
            ApiError: the forced tokens have ended the answer.
            Unavailable: too few members are left.
        """
        kept = await self._keep()
        self._kept = len(kept)
        row = replace(self._plan.row, given=tuple(step.decision.token for _, step in kept))
        try:
            async with aclosing(decode_rows(self._backend, self._model.name, [row])) as rows:
                first = await anext(rows)
                yield [*kept, *first]
                async for batch in rows:
                    yield batch
        except ValueError as error:
            raise invalid("forced", f"forced, earlier: {error}") from None

    async def _keep(self) -> list[tuple[int, StepOutput]]:
        """The forced tokens, and the earlier ones up to the first that the vote would not give."""
        plan = self._plan
        tokens, forced = (*plan.forced, *plan.earlier), len(plan.forced)
        if not tokens:
            return []
        decisions = await self._backend.judge(
            self._model.name,
            plan.row.prompt,
            tokens,
            forced=forced,
            top=plan.row.top_logprobs,
            weights=plan.weights,
        )
        kept: list[Decision] = []
        for place, (token, decision) in enumerate(zip(tokens, decisions, strict=True)):
            if place >= forced and decision.token != token:
                break
            kept.append(decision)
        begins = beginnings(self._decode_shown, tokens[: len(kept)])
        # Their text comes with the first token that is voted on.
        return [(0, StepOutput(0, i, d, "", None, begins[i])) for i, d in enumerate(kept)]

    # -- the events ------------------------------------------------------------------------------------------

    @property
    def spoken(self) -> int:
        """Tokens voted so far, without those that were kept."""
        return max(0, len(self._answer.steps) - self._kept)

    @property
    def texts(self) -> list[str]:
        """The answer so far."""
        return [self._answer.text]

    def voted(self, batch: Batch) -> list[int]:
        """How many members voted on each token of a batch."""
        return [wire.voters_of(step) for _, step in batch]

    def opening(self) -> bytes:
        """What was asked, as the members read it, and their weights."""
        plan, prompt = self._plan, self._plan.row.prompt
        content = {
            "type": "begin",
            "model": self._model.name,
            "prompt": self._decode_all(prompt.tolist()),
            "prompt_tokens": len(prompt),
            "weights": list(plan.shares),
            "kept": self._kept,
            "forced": len(plan.forced),
        }
        return event(content)

    def batch(self, batch: Batch) -> bytes:
        """An event a token."""
        return b"".join(self._token(step) for _, step in batch)

    def ending(self) -> bytes:
        """The answer as text, and how many of the tokens it takes."""
        answer = self._answer
        shown = len(wire.scored_answer(answer)) - (answer.finish == "eos")
        members = wire.voters(self._model, [answer.voters] if answer.voters is not None else [])
        return event(
            {
                "type": "end",
                "text": answer.text,
                "finish": answer.finish,
                "tokens": len(answer.steps),
                "shown": shown,
                "ensemw2s": members,
            }
        )

    def _token(self, step: StepOutput) -> bytes:
        self._answer.add(step)
        decision, index = step.decision, len(self._answer.steps) - 1
        forced = index < len(self._plan.forced)
        members: list[dict[str, Any] | None] = [
            None
            if say is None
            else {"voted": say.voted, "top": self._named(zip(say.tokens, say.probabilities, strict=True))}
            for say in decision.members
        ]
        content = {
            "type": "token",
            "index": index,
            "id": decision.token,
            "text": self._pieces.push(decision.token),
            "special": decision.token in self._special,
            "kept": index < self._kept,
            "path": "forced" if forced else decision.path,
            "probability": decision.probability,
            "top": self._named(decision.top),
            "members": members,
        }
        return event(content)

    def _named(self, tokens: Any) -> Sequence[tuple[int, str, float]]:
        return [(token, self._name(token), probability) for token, probability in tokens]

    def _name(self, token: int) -> str:
        if token not in self._names:
            self._names[token] = token_text(self._model, token)
        return self._names[token]
