"""Voted answers of members that read different tokens: the vote is on the next byte, or on the end of the text.

P(b | text) = sum_t alpha_t P_t(b | text) / sum_t alpha_t in float64, members in order, ties to the lowest byte; what a member says
is in :mod:`ensemw2s.engine.decoding.byte_rows`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ensemw2s.core.utf8 import END
from ensemw2s.core.voting import mixture
from ensemw2s.engine.decoding.byte_rows import BytePrompt, ByteReply, ByteStep
from ensemw2s.engine.decoding.members import Call, wait_for_end
from ensemw2s.engine.decoding.worker import SessionLost
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef


@dataclass
class ByteAnswer:
    """One voted answer.

    Attributes:
        text: its bytes.
        probabilities: of each byte, under the vote.
        members: for each byte, each member's own likeliest symbol: a byte, or 256 for the end.
        end: probability of the end, where the answer ended so.
    """

    text: bytes = b""
    probabilities: list[float] = field(default_factory=list)
    members: list[list[int]] = field(default_factory=list)
    end: float | None = None


class ByteVote:
    """Greedy decoding by a weighted vote on bytes.

    Args:
        pool: who calls the members; member m is called on slot m.
        members: the voting models.
        alphas: (T,) their weights.
        finished: whether an answer has come to its end, from its bytes.
        max_bytes: longest answer.
    """

    def __init__(
        self,
        pool: SupervisorPool,
        members: Sequence[ModelRef | Hashable],
        alphas: np.ndarray,
        *,
        finished: Callable[[bytes], bool],
        max_bytes: int,
    ) -> None:
        self._pool, self._members, self._alphas = pool, list(members), np.asarray(alphas, dtype=np.float64)
        self._finished, self._max_bytes = finished, max_bytes
        self.forwarded = 0
        self.steps = 0

    def decode(self, prompts: Sequence[Sequence[BytePrompt]]) -> list[ByteAnswer]:
        """Answers to n prompts, decoded together.

        Args:
            prompts: by member, the n prompts in its tokens.

        Raises:
            ModelError: a text grows longer than a member's context.
        """
        answers = [ByteAnswer() for _ in prompts[0]]
        rows, session = list(range(len(answers))), uuid.uuid4().hex
        step: ByteStep | None = None
        try:
            while rows:
                voted, own = self._hear(prompts, answers, rows, session, step)
                symbols = voted.argmax(axis=1)
                going = []
                for place, (i, symbol) in enumerate(zip(rows, symbols.tolist(), strict=True)):
                    if self._take(answers[i], symbol, float(voted[place, symbol]), own[:, place].tolist()):
                        going.append(place)
                keep = None if len(going) == len(rows) else np.array(going, dtype=np.int32)
                rows = [rows[place] for place in going]
                step = ByteStep(session, (), keep, symbols[going].astype(np.int32))
                self.steps += 1
        finally:
            wait_for_end(
                [Call(self._pool, m, "decode_bytes_end", ref) for m, ref in enumerate(self._members)]
            )
        return answers

    def _take(self, answer: ByteAnswer, symbol: int, probability: float, members: list[int]) -> bool:
        """Add a symbol; whether the answer goes on."""
        if symbol == END:
            answer.end = probability
            return False
        answer.text += bytes([symbol])
        answer.probabilities.append(probability)
        answer.members.append(members)
        return len(answer.text) < self._max_bytes and not self._finished(answer.text)

    def _hear(
        self,
        prompts: Sequence[Sequence[BytePrompt]],
        answers: Sequence[ByteAnswer],
        rows: Sequence[int],
        session: str,
        step: ByteStep | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The vote (B, 257), and each member's own choice (T, B); a worker that was restarted begins from the texts."""

        def ask(member: int, step: ByteStep | None) -> Call:
            if step is None:
                own = prompts[member]
                texts = tuple(BytePrompt(own[i].ids, own[i].context, answers[i].text) for i in rows)
                step = ByteStep(session, texts, None, np.zeros(0, dtype=np.int32))
            return Call(self._pool, member, "decode_bytes", self._members[member], step)

        calls = [ask(m, step) for m in range(len(self._members))]
        replies: list[ByteReply] = []
        errors: list[Exception] = []
        for m, call in enumerate(calls):
            # All are heard before an error is raised, so that none is left at work.
            try:
                try:
                    replies.append(call.result())
                except SessionLost:
                    replies.append(ask(m, None).result())
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        self.forwarded += sum(reply.forwarded for reply in replies)
        probs = np.stack([reply.probs for reply in replies])
        return mixture(probs, self._alphas), probs.argmax(axis=2)
