"""Voted answers to given prompts: the batch face of :mod:`ensemw2s.engine.decoding`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeCounts, DecodeRequest, Speculate, StepOutput
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.engine.together import share_bases
from ensemw2s.errors import ModelError

#: Newcomers are read in a forward of their own; one by one they would cost a reading of the weights each.
ENTER_TOGETHER = 8


@dataclass
class Generated:
    """One voted answer.

    Attributes:
        tokens: the answer's token ids, end-of-text not included; its bytes, where the vote is on bytes (256 is the end).
        text: the answer, cut at the first stop string and stripped.
        confidence: product of the voted probabilities of the tokens, the stop included; in [0, 1].
        member_tokens: per token, each member's own likeliest token.
        probabilities: per token, its voted probability.
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    confidence: float = 1.0
    member_tokens: list[list[int]] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class VoteCounts:
    """What a decode took.

    Attributes:
        certified: tokens that were certain from what the members sent.
        asked: tokens that took exact values of a few, or more tokens.
        full: tokens that took whole rows.
        forwarded: tokens that the members read.
        close: tokens that were decided by less than the rounding of the members' number format.
        completed: certified ones whose probability took a further question.
    """

    certified: int
    asked: int
    full: int
    forwarded: int
    close: int
    completed: int


class VotedDecoder:
    """Greedy decoding by a weighted vote.

    Args:
        pool: supervisors; member m steps on slot m.
        members: the voting models.
        alphas: (T,) their weights.
        tokenizer: shared by the members.
        max_new_tokens: longest answer.
        stop: strings that end an answer.
        top_k: tokens that each member sends per step.
        batch_tokens: bound on rows times (longest prompt + max_new_tokens).
        eos_ids: the end-of-text ids.
        speculate: what drafts tokens; see :class:`ensemw2s.engine.decoding.engine.VotingEngine`.
    """

    def __init__(
        self,
        pool: SupervisorPool,
        members: Sequence[ModelRef],
        alphas: np.ndarray,
        tokenizer: object,
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        top_k: int,
        batch_tokens: int,
        eos_ids: Sequence[int],
        speculate: Speculate = "off",
    ) -> None:
        self._pool, self._members = share_bases(pool, members), list(members)
        self._tokenizer = tokenizer
        self._max_new, self._stop = max_new_tokens, tuple(stop)
        self._engine = VotingEngine(
            self._pool,
            self._members,
            alphas,
            decode=self._decode_text if self._stop else None,
            eos_ids=[int(e) for e in eos_ids],
            top_k=top_k,
            batch_tokens=batch_tokens,
            max_rows=batch_tokens,
            enter_together=ENTER_TOGETHER,
            speculate=speculate,
        )

    @property
    def counts(self) -> VoteCounts:
        """What has been decoded so far."""
        counts: DecodeCounts = self._engine.counts
        paths = counts.paths
        return VoteCounts(
            paths["certified"],
            paths["candidates"] + paths["wider"],
            paths["full"],
            counts.forwarded,
            counts.close,
            counts.completed,
        )

    def decode(
        self, prompts: Sequence[np.ndarray], progress: Callable[[int, int], None] | None = None
    ) -> list[Generated]:
        """Answers to the prompts, in their order.

        Raises:
            ModelError: a text grows longer than the members' context.
        """
        keep_members(self._pool, len(self._members))
        answers = [Generated() for _ in prompts]
        place: dict[int, int] = {}
        # The longest first: rows of like length run together, and room only grows as the batch goes on.
        for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            request = DecodeRequest(prompts[i], self._max_new, self._stop, stop_after_text=True)
            place[self._engine.add(request)] = i
        done = 0
        while self._engine.pending:
            for output in self._engine.step():
                i = place[output.request]
                self._take(answers[i], output, len(prompts[i]))
                done += output.finish is not None
                if output.finish is not None and progress is not None:
                    progress(done, len(prompts))
        return answers

    def _take(self, answer: Generated, output: StepOutput, prompt_length: int) -> None:
        decision = output.decision
        answer.confidence *= decision.probability
        if output.finish != "eos":
            answer.tokens.append(decision.token)
            answer.probabilities.append(decision.probability)
            answer.member_tokens.append([s.tokens[0] for s in decision.members if s is not None])
        if output.finish == "length" and len(answer.tokens) < self._max_new:
            n = prompt_length + len(answer.tokens)
            raise ModelError(
                f"a text has {n} tokens, the model's context holds {n - 1}: lower data.max_length or "
                "vote.max_new_tokens"
            )
        if output.finish is not None:
            answer.text = self._text(answer.tokens)

    def _decode_text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))  # type: ignore[attr-defined]

    def _text(self, tokens: list[int]) -> str:
        return answer_text(self._decode_text(tokens), self._stop)


def answer_text(text: str, stop: Sequence[str]) -> str:
    """The answer in what was decoded: cut at the first stop string behind the first visible character, and stripped."""
    body = text.lstrip()
    ends = [body.index(s) for s in stop if s in body]
    return body[: min(ends)].strip() if ends else body.strip()


def keep_members(pool: SupervisorPool, n: int) -> None:
    """Let every supervisor hold as many models as members of a vote fall to it."""
    for slot in range(min(pool.size, n)):
        pool.submit(slot, "keep_models", -(-n // pool.size)).result()
