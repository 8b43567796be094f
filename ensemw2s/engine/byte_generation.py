"""Voted answers where the members' tokenizers differ: the batch face of :mod:`ensemw2s.engine.decoding.byte_vote`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ensemw2s.core.utf8 import unfinished
from ensemw2s.engine.aligned import AlignedSplit
from ensemw2s.engine.decoding.byte_rows import BytePrompt
from ensemw2s.engine.decoding.byte_vote import ByteAnswer, ByteVote
from ensemw2s.engine.generation import Generated, VoteCounts, answer_text, keep_members
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.engine.together import share_bases

#: An answer has at most this many bytes for each of vote.max_new_tokens.
BYTES_PER_TOKEN = 4


class ByteDecoder:
    """Greedy decoding by a weighted vote on bytes.

    Args:
        pool: supervisors; member m steps on slot m.
        members: the voting models.
        alphas: (T,) their weights.
        max_new_tokens: longest answer, of ``BYTES_PER_TOKEN`` bytes each.
        stop: strings that end an answer.
        batch_tokens: bound on rows times (longest prompt in tokens + longest answer in bytes).
    """

    def __init__(
        self,
        pool: SupervisorPool,
        members: Sequence[ModelRef],
        alphas: np.ndarray,
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        batch_tokens: int,
    ) -> None:
        self._pool, self._members = share_bases(pool, members), list(members)
        self._stop, self._batch_tokens = tuple(stop), batch_tokens
        self._max_bytes = BYTES_PER_TOKEN * max_new_tokens
        self._vote = ByteVote(
            self._pool, self._members, alphas, finished=self._finished, max_bytes=self._max_bytes
        )
        self._decided = 0

    @property
    def counts(self) -> VoteCounts:
        """What has been decoded so far; the members send whole distributions over bytes."""
        return VoteCounts(0, 0, self._decided, self._vote.forwarded, 0, 0)

    def decode(
        self, data: AlignedSplit, progress: Callable[[int, int], None] | None = None
    ) -> list[Generated]:
        """Answers to the questions, in their order; their tokens are bytes.

        Raises:
            ModelError: a text grows longer than a member's context, or a model that cannot take tokens back.
        """
        keep_members(self._pool, len(self._members))
        prompts = [
            [BytePrompt(e.prompt, c) for e, c in zip(split.encoded, data.contexts, strict=True)]
            for split in (data.of_member(ref.index) for ref in self._members)
        ]
        lengths = np.max([[len(p.ids) for p in own] for own in prompts], axis=0)
        answers = [Generated() for _ in data.samples]
        # The longest first: rows of like length run together.
        waiting = np.argsort(-lengths, kind="stable").tolist()
        while waiting:
            n = max(1, self._batch_tokens // int(lengths[waiting[0]] + self._max_bytes))
            batch, waiting = waiting[:n], waiting[n:]
            for i, answer in zip(
                batch, self._vote.decode([[own[i] for i in batch] for own in prompts]), strict=True
            ):
                answers[i] = self._generated(answer)
            if progress is not None:
                progress(len(answers) - len(waiting), len(answers))
        return answers

    def _generated(self, answer: ByteAnswer) -> Generated:
        self._decided += len(answer.text) + (answer.end is not None)
        confidence = float(np.prod([*answer.probabilities, *([] if answer.end is None else [answer.end])]))
        text = answer_text(_whole(answer.text), self._stop)
        return Generated(list(answer.text), text, confidence, answer.members, answer.probabilities)

    def _finished(self, text: bytes) -> bool:
        body = _whole(text).lstrip()
        return any(stop in body for stop in self._stop)


def _whole(text: bytes) -> str:
    """The text up to its last whole character."""
    return text[: len(text) - len(unfinished(text))].decode()
