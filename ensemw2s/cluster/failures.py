"""What follows a failure of a weak supervisor: a pure function of its kind, what happened before, and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Failure = Literal["actor_died", "unavailable", "node_died", "exception", "out_of_memory", "diverged"]
Action = Literal["retry", "wait", "drop", "raise"]

# Losses of a process, which the same work elsewhere or later may survive. The other kinds repeat themselves.
LOST: frozenset[Failure] = frozenset({"actor_died", "node_died"})


@dataclass(frozen=True)
class FailureLimits:
    """What is allowed: restarts of one worker, seconds of waiting for one that does not answer, members that must stay.

    Attributes:
        quorum: fewest members left after a drop; None: never drop.
    """

    max_failures: int
    max_wait_seconds: float
    quorum: int | None = None


@dataclass(frozen=True)
class FailureCounts:
    """What happened so far: restarts of this worker, seconds waited for it, members now, this one included."""

    restarts: int
    waited_seconds: float
    members: int


def decide(kind: Failure, counts: FailureCounts, limits: FailureLimits) -> Action:
    """Retry, wait for the same process, leave the member out, or end the run.

    An exception and a diverged training come again with the same work, and so does a lack of memory: they end the run.
    A process that does not answer is alive until the wait is over; it then counts as lost.
    """
    if kind == "unavailable" and counts.waited_seconds < limits.max_wait_seconds:
        return "wait"
    if kind not in LOST and kind != "unavailable":
        return "raise"
    if counts.restarts < limits.max_failures:
        return "retry"
    if limits.quorum is not None and counts.members - 1 >= max(1, limits.quorum):
        return "drop"
    return "raise"
