"""How many requests are worked on and how many may wait; pure asyncio, one per server process."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from ensemw2s.serving.errors import ApiError


class Admission:
    """A bounded number of requests at work, and a bounded first-come queue before them.

    Args:
        concurrent: requests at work.
        queue: requests that wait.
    """

    def __init__(self, concurrent: int, queue: int) -> None:
        self._limit, self._queue_limit = concurrent, queue
        self._active = 0
        self._closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def active(self) -> int:
        """Requests at work."""
        return self._active

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def enter(self) -> Ticket:
        """Wait for a place.

        Raises:
            ApiError: 429, the queue is full; 503, the server is stopping.
        """
        if self._closed:
            headers = {"Retry-After": "5"}
            raise ApiError(503, "the server is stopping", code="server_stopping", headers=headers)
        if self._active < self._limit:
            self._active += 1
            return Ticket(self)
        if len(self._waiting) >= self._queue_limit:
            raise ApiError(
                429,
                f"the server is busy: {self._active} requests are worked on and {len(self._waiting)} wait",
                code="server_busy",
                headers={"Retry-After": "1"},
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.done() and not place.cancelled():
                # The place was given at the very moment when the request went away.
                self._release()
            raise
        return Ticket(self)

    async def drain(self, seconds: float) -> bool:
        """Take nothing new; wait until all that was taken has ended, or for `seconds`. Whether it has."""
        self._closed = True
        deadline = time.monotonic() + seconds
        while (self._active or self._waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return not self._active and not self._waiting

    def _release(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                # The place passes on: the number at work stays.
                place.set_result(None)
                return
        self._active -= 1


class Ticket:
    """One request's place; given back once, however often it is asked to."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Give the place to the next request."""
        if self._admission is not None:
            admission, self._admission = self._admission, None
            admission._release()
