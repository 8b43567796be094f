"""Calls to members of one process go there as one, so that members on one base answer in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemw2s.engine.pool import Pending, SupervisorPool
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.errors import WorkerFailure

#: Calls that wait for others of their kind, and what they become.
JOINED = {"decode_step": "decode_steps", "score_texts": "score_texts_together"}


def share_bases(pool: SupervisorPool, refs: Sequence[ModelRef]) -> SupervisorPool:
    """Let members of one process share their base from now on, and ask them together.

    Args:
        pool: member m is called on slot m.
        refs: the members that vote.

    Returns:
        the pool to call them by; the same one where every member has a process of its own, or a base.
    """
    if pool.size >= len(refs):
        return pool
    asked = [pool.submit(slot, "share_bases", list(refs[slot :: pool.size])) for slot in range(pool.size)]
    # Members that share nothing are asked one by one: one that fails is then known by its call.
    shared = [call.result() for call in asked]
    return TogetherPool(pool) if any(shared) and not isinstance(pool, TogetherPool) else pool


class TogetherPool:
    """A pool that hands in steps and scores when the first of their results is waited for: those of one process as one call.

    Whatever else is asked goes after what waits.
    """

    def __init__(self, pool: SupervisorPool) -> None:
        self.size = pool.size
        self._pool = pool
        self._waiting: list[_Waiting] = []

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        """As of any pool."""
        if method not in JOINED:
            self.flush()
            return self._pool.submit(slot, method, *args)
        call = _Waiting(self, slot, method, args)
        self._waiting.append(call)
        return call

    def flush(self) -> None:
        """Hand in what waits."""
        waiting, self._waiting = self._waiting, []
        groups: list[list[_Waiting]] = []
        for call in waiting:
            group = next((g for g in groups if self._fits(g[0], call)), None)
            if group is None:
                groups.append([call])
            else:
                group.append(call)
        for group in groups:
            self._hand_in(group)

    def _fits(self, a: _Waiting, b: _Waiting) -> bool:
        """Whether two calls can be one: each step is of its own, scores are of the same texts."""
        if a.slot % self.size != b.slot % self.size or a.method != b.method:
            return False
        return a.method == "decode_step" or all(
            x is y or _equal(x, y) for x, y in zip(a.args[1:], b.args[1:], strict=True)
        )

    def _hand_in(self, group: list[_Waiting]) -> None:
        first = group[0]
        try:
            if len(group) == 1:
                pending = self._pool.submit(first.slot, first.method, *first.args)
            elif first.method == "decode_step":
                pending = self._pool.submit(first.slot, JOINED[first.method], [call.args for call in group])
            else:
                refs = [call.args[0] for call in group]
                pending = self._pool.submit(first.slot, JOINED[first.method], refs, *first.args[1:])
        except Exception as error:
            # A pool of this process does the work when it is handed in.
            for call in group:
                call.error = error
            return
        for place, call in enumerate(group):
            call.pending, call.place = pending, place if len(group) > 1 else None


class _Waiting:
    """A call that has not been handed in yet, or its answer."""

    def __init__(self, pool: TogetherPool, slot: int, method: str, args: tuple[Any, ...]) -> None:
        self.slot, self.method, self.args = slot, method, args
        self.pending: Pending | None = None
        self.place: int | None = None
        self.error: Exception | None = None
        self._pool = pool

    def result(self) -> Any:
        """The answer; raises what the call raised."""
        if self.pending is None and self.error is None:
            self._pool.flush()
        if self.error is not None:
            raise self.error
        if self.pending is None:
            raise RuntimeError("a call that was not handed in")
        value = self.pending.result()
        if self.place is None:
            return value
        own = value[self.place]
        if isinstance(own, WorkerFailure):
            raise own
        return own


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, str) and a == b
