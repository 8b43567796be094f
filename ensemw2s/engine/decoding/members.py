"""The scheduler's picture of one member: which requests its rows hold, and the calls that keep them in step."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemw2s.engine.decoding.messages import DecodeRequest, MemberReply, MemberStep
from ensemw2s.engine.decoding.text import AnswerText
from ensemw2s.engine.pool import Pending, SupervisorPool
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.errors import WorkerFailure


@dataclass(eq=False)
class Running:
    """A request that is being decoded.

    Attributes:
        id: of the request.
        request: what was asked.
        weights: (T,) voting weights.
        eos: end-of-text ids.
        answer: its text, or None where nobody looks at it.
        tokens: the answer so far.
        unsaid: text of given tokens that goes with the first voted one.
    """

    id: int
    request: DecodeRequest
    weights: np.ndarray
    eos: frozenset[int]
    answer: AnswerText | None
    tokens: list[int] = field(default_factory=list)
    unsaid: str = ""

    @property
    def longest(self) -> int:
        """Tokens that the text may grow to."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def text_ids(self) -> np.ndarray:
        """All token ids, (p + n,) int32."""
        return np.concatenate([self.request.prompt, np.asarray(self.tokens)]).astype(np.int32)


class Call:
    """A call under way; what goes wrong, now or later, is raised by `result`."""

    def __init__(self, pool: SupervisorPool, slot: int, method: str, *args: Any) -> None:
        self._error: Exception | None = None
        self._pending: Pending | None = None
        # A pool of this process does the work, and fails, when it is handed in; all members are asked first.
        try:
            self._pending = pool.submit(slot, method, *args)
        except Exception as error:
            self._error = error

    def result(self) -> Any:
        """The answer."""
        if self._pending is None:
            raise self._error if self._error is not None else RuntimeError("a call without an answer")
        return self._pending.result()


def wait_for_end(calls: Iterable[Call | None]) -> None:
    """Wait for rows to be freed; a member that has failed holds none."""
    for call in calls:
        with contextlib.suppress(WorkerFailure):
            if call is not None:
                call.result()


class MemberLink:
    """One member.

    Args:
        pool: who calls it.
        slot: its place in the pool.
        ref: its weights.
    """

    def __init__(self, pool: SupervisorPool, slot: int, ref: ModelRef | Hashable) -> None:
        self._pool, self._slot, self._ref = pool, slot, ref
        self._session: str | None = None
        self._rows: list[int] = []
        # Of each row: distributions in the last reply, and the answer's length when it was asked for.
        self._counts: dict[int, int] = {}
        self._asked_at: dict[int, int] = {}
        self._holds = False

    def call(self, method: str, *args: Any) -> Call:
        """Hand in a call."""
        return Call(self._pool, self._slot, method, self._ref, *args)

    def step(
        self,
        wanted: Mapping[int, Running],
        k: int,
        draws: Mapping[int, float],
        drafts: Mapping[int, Sequence[int]],
    ) -> tuple[Call, int]:
        """Bring the member's rows in line with the wanted requests and ask for what comes next.

        Args:
            wanted: the requests that it votes on, by id; each is longer than at the step before, or new.
            k: tokens to send.
            draws: requests of which the member draws a token, with the number that decides it.
            drafts: tokens that may come next, by request; those of requests that the member reads anew are left out.

        Returns:
            The call, which gives a :class:`MemberReply`, and the tokens that the member reads for it.
        """
        begin = self._session is None
        stand = self._stand(wanted)
        keep = None if begin else self._keep(wanted)
        tokens = np.array([wanted[i].tokens[-1] for i in self._rows], dtype=np.int32)
        own = [list(drafts.get(i, ())) for i in self._rows]
        held = set(self._rows)
        prompts = tuple(r.text_ids() for i, r in wanted.items() if i not in held)
        self._counts = {i: 1 + len(draft) for i, draft in zip(self._rows, own, strict=True)}
        self._rows += [i for i in wanted if i not in held]
        self._asked_at = {i: len(wanted[i].tokens) for i in self._rows}
        self._session = self._session or uuid.uuid4().hex
        self._holds = True
        drawn = [i for i in self._rows if i in draws]
        step = MemberStep(
            self._session,
            begin,
            keep,
            tokens,
            prompts,
            k,
            self.places([(i, 0) for i in drawn]).astype(np.int32),
            np.array([draws[i] for i in drawn], dtype=np.float64),
            stand,
            _padded(own),
        )
        return self.call("decode_step", step), len(tokens) + sum(map(len, own)) + sum(map(len, prompts))

    def drawn(self, reply: MemberReply, draws: Mapping[int, float]) -> dict[int, int]:
        """The tokens that it drew, by request."""
        ids = [i for i in self._rows if i in draws]
        return dict(zip(ids, reply.drawn.tolist(), strict=True))

    def count(self, request: int) -> int:
        """How many distributions of a request its last reply has: one, and one more for each drafted token."""
        return self._counts.get(request, 1)

    def places(self, wanted: Sequence[tuple[int, int]]) -> np.ndarray:
        """Where in its last reply the distributions of these requests are, (n,) int64; (request, drafted tokens before it)."""
        first, total = {}, 0
        for i in self._rows:
            first[i] = total
            total += self.count(i)
        return np.array([first[i] + n for i, n in wanted], dtype=np.int64)

    def forget(self) -> None:
        """Its rows are lost, or in doubt: the next step begins anew, from the texts."""
        self._session, self._rows, self._counts = None, [], {}

    def end(self) -> Call | None:
        """Begin to free its rows; None where it holds none."""
        self.forget()
        held, self._holds = self._holds, False
        return self.call("decode_end") if held else None

    def _stand(self, wanted: Mapping[int, Running]) -> np.ndarray | None:
        """How many of the tokens that each row was last continued by stand; None where all do, or none were drafted."""
        if all(count == 1 for count in self._counts.values()):
            return None
        # A row that is not wanted goes; what stands there does not matter.
        grown = [
            len(wanted[i].tokens) - self._asked_at[i] if i in wanted else self.count(i) for i in self._rows
        ]
        return np.minimum(grown, [self.count(i) for i in self._rows]).astype(np.int32)

    def _keep(self, wanted: Mapping[int, Running]) -> np.ndarray | None:
        """Drop the rows that are not wanted: the last ones move into the gaps, so that few are copied."""
        n = sum(i in wanted for i in self._rows)
        if n == len(self._rows):
            return None
        keep = list(range(n))
        movers = (row for row in range(n, len(self._rows)) if self._rows[row] in wanted)
        for row in range(n):
            if self._rows[row] not in wanted:
                keep[row] = next(movers)
        self._rows = [self._rows[row] for row in keep]
        return np.array(keep, dtype=np.int32)


def _padded(drafts: Sequence[Sequence[int]]) -> np.ndarray | None:
    """(n, d) int32, filled with -1; None where nothing is drafted."""
    longest = max(map(len, drafts), default=0)
    if longest == 0:
        return None
    filled = np.full((len(drafts), longest), -1, dtype=np.int32)
    for row, draft in enumerate(drafts):
        filled[row, : len(draft)] = draft
    return filled
