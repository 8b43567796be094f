"""Several replicas of the vote, and of a member: whose rows are where.

A replica of the vote decodes by an engine of its own, whose rows lie in one replica of each member. Its calls therefore
always go to the same one, by its rank: rank r to the replica r modulo their number. When that one dies, or their number
changes, the next one does not know the rows and says so; the engine then begins anew from the texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

IDLE_SECONDS = 300.0
"""what a caller that is silent for so long holds here is freed: it has died, or it begins anew"""

T = TypeVar("T")


class LaneRouter(RequestRouter):
    """Sends a call to the replica of its keyword ``rank``."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        rank = 0 if pending_request is None else int(pending_request.kwargs.get("rank", 0))
        replicas = sorted(candidate_replicas, key=lambda replica: str(replica.replica_id.unique_id))
        return [[replicas[rank % len(replicas)]]]


class Desks(Generic[T]):
    """What a member holds for each of its callers; used from one thread.

    Args:
        make: a new caller's desk.
        clock: seconds.
    """

    def __init__(self, make: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock = make, clock
        self._desks: dict[str, tuple[T, float]] = {}

    def of(self, caller: str) -> T:
        """This caller's desk; those of callers that have long been silent are cleared."""
        now = self._clock()
        for other in [c for c, (_, used) in self._desks.items() if now - used > IDLE_SECONDS]:
            del self._desks[other]
        desk = self._desks[caller][0] if caller in self._desks else self._make()
        self._desks[caller] = (desk, now)
        return desk
