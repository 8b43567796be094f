"""Members that are Ray Serve deployments: calls in order, and who is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from ensemw2s.cluster.remote_errors import unwrap
from ensemw2s.engine.pool import Pending
from ensemw2s.errors import WorkerFailure

PATIENCE_SECONDS = 2.0
"""a call that takes longer is looked after: is there a replica that works on it?"""
PROBE_SECONDS = 3.0
PAUSE_SECONDS = 0.3
# Whatever Ray says but an error of the member's own code: the replica, its node or the answer is gone.
_LOST = (ray.exceptions.RayError, RayServeException, TimeoutError)
_LOG = logging.getLogger(__name__)


class ServeMembers:
    """Implements :class:`ensemw2s.serving.members.Members`; used from one thread.

    A member whose replica dies counts as down until its replacement answers.

    Args:
        handles: one deployment a slot.
        call_seconds: a call that takes longer counts as a death.
        caller: whose rows the members hold; a name of its own for each replica of the vote.
        rank: of this replica of the vote, which chooses the replica of a member.
    """

    def __init__(
        self,
        handles: Sequence[DeploymentHandle],
        call_seconds: float,
        *,
        caller: str = "vote",
        rank: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size = len(handles)
        self._caller, self._rank = caller, rank
        self._handles, self._seconds = list(handles), call_seconds
        self._alive = [True] * self.size
        self._last: list[ServePending | None] = [None] * self.size
        self._callbacks: list[Callable[[int], None]] = []
        self._closed = threading.Event()

    def wait_ready(self) -> None:
        """Return when every member has loaded its weights; Serve says what keeps one from it."""
        for response in [handle.ping.remote(rank=self._rank()) for handle in self._handles]:
            response.result()

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        # Serve gives no order between calls, so the one before has to be answered.
        last = self._last[slot]
        if last is not None:
            last.settle()
        if not self._alive[slot]:
            raise WorkerFailure(f"member {slot} is being replaced")
        try:
            response = self._handles[slot].call.remote(method, args, caller=self._caller, rank=self._rank())
        except _LOST as error:
            self.lost(slot)
            raise WorkerFailure(f"member {slot} cannot be called ({type(error).__name__})") from error
        pending = ServePending(self, slot, response, self._seconds)
        self._last[slot] = pending
        return pending

    def alive(self, slot: int) -> bool:
        return self._alive[slot]

    def on_return(self, callback: Callable[[int], None]) -> None:
        self._callbacks.append(callback)

    def lost(self, slot: int) -> None:
        """A call failed because the replica is gone: ask in the background until another one answers."""
        if self._alive[slot] and not self._closed.is_set():
            self._alive[slot] = False
            _LOG.warning("member %d is down", slot)
            threading.Thread(target=self._probe, args=(slot,), daemon=True).start()

    def answers(self, slot: int) -> bool:
        """Whether a replica answers now, beside whatever it works on."""
        response: DeploymentResponse | None = None
        try:
            response = self._handles[slot].ping.remote(rank=self._rank())
            response.result(timeout_s=PROBE_SECONDS)
        except _LOST:
            if response is not None:
                response.cancel()
            return False
        return True

    def _probe(self, slot: int) -> None:
        while not self._closed.wait(PAUSE_SECONDS):
            try:
                if not self.answers(slot):
                    continue
                self._alive[slot] = True
                for callback in self._callbacks:
                    callback(slot)
            except Exception:
                # Without this thread the member would be down for ever.
                _LOG.exception("member %d could not be asked; it is asked again", slot)
                continue
            _LOG.warning("member %d is back", slot)
            return

    def close(self) -> None:
        self._closed.set()


class ServePending:
    """A call under way; its answer is fetched once and kept."""

    def __init__(
        self, members: ServeMembers, slot: int, response: DeploymentResponse, seconds: float
    ) -> None:
        self._members, self._slot, self._response = members, slot, response
        self._deadline = time.monotonic() + seconds
        self._settled = False
        self._value: Any = None
        self._error: BaseException | None = None

    def settle(self) -> None:
        """Wait for the answer without looking at it."""
        if self._settled:
            return
        try:
            self._value = self._wait()
        except ray.exceptions.RayTaskError as error:
            self._error = unwrap(error)
        except _LOST as error:
            self._members.lost(self._slot)
            self._error = WorkerFailure(f"member {self._slot} did not answer ({type(error).__name__})")
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._settled = True

    def _wait(self) -> Any:
        # Serve keeps a call until there is a replica to take it, however long that takes: whether there is one is asked
        # beside it.
        while True:
            left = self._deadline - time.monotonic()
            try:
                return self._response.result(timeout_s=max(0.0, min(left, PATIENCE_SECONDS)))
            except TimeoutError:
                if left <= PATIENCE_SECONDS or not self._members.answers(self._slot):
                    self._response.cancel()
                    raise

    def result(self) -> Any:
        self.settle()
        if self._error is not None:
            raise self._error
        return self._value
