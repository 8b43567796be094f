"""The scheduler's picture of one member: which requests its rows hold, and the calls that keep them in step."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Hashable, Iterable, Mapping
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
        self._holds = False

    def call(self, method: str, *args: Any) -> Call:
        """Hand in a call."""
        return Call(self._pool, self._slot, method, self._ref, *args)

    def step(self, wanted: Mapping[int, Running], k: int, draws: Mapping[int, float]) -> tuple[Call, int]:
        """Bring the member's rows in line with the wanted requests and ask for what comes next.

        Args:
            wanted: the requests that it votes on, by id; each has one token more than at the step before, or is new.
            k: tokens to send.
            draws: requests of which the member draws a token, with the number that decides it.

        Returns:
            The call, which gives a :class:`MemberReply`, and the tokens that the member reads for it.
        """
        begin = self._session is None
        keep = None if begin else self._keep(wanted)
        tokens = np.array([wanted[i].tokens[-1] for i in self._rows], dtype=np.int32)
        held = set(self._rows)
        prompts = tuple(r.text_ids() for i, r in wanted.items() if i not in held)
        self._rows += [i for i in wanted if i not in held]
        self._session = self._session or uuid.uuid4().hex
        self._holds = True
        drawn = [(row, draws[i]) for row, i in enumerate(self._rows) if i in draws]
        step = MemberStep(
            self._session,
            begin,
            keep,
            tokens,
            prompts,
            k,
            np.array([row for row, _ in drawn], dtype=np.int32),
            np.array([u for _, u in drawn], dtype=np.float64),
        )
        return self.call("decode_step", step), len(tokens) + sum(len(p) for p in prompts)

    def drawn(self, reply: MemberReply, draws: Mapping[int, float]) -> dict[int, int]:
        """The tokens that it drew, by request."""
        ids = [i for i in self._rows if i in draws]
        return dict(zip(ids, reply.drawn.tolist(), strict=True))

    def rows(self, ids: list[int]) -> np.ndarray:
        """Its rows of these requests, (n,) int64."""
        place = {i: row for row, i in enumerate(self._rows)}
        return np.array([place[i] for i in ids], dtype=np.int64)

    def forget(self) -> None:
        """Its rows are lost, or in doubt: the next step begins anew, from the texts."""
        self._session, self._rows = None, []

    def end(self) -> Call | None:
        """Begin to free its rows; None where it holds none."""
        self.forget()
        held, self._holds = self._holds, False
        return self.call("decode_end") if held else None

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
