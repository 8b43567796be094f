"""The one thread in which members are called: decode steps of all models, and other work between them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ensemw2s.engine.decoding.messages import DecodeRequest, StepOutput
from ensemw2s.engine.decoding.round import NoVoter
from ensemw2s.errors import WorkerFailure
from ensemw2s.serving.protocol import Sink, Unavailable
from ensemw2s.serving.voter import Voter

STALLED_SECONDS = 0.1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Listener:
    sink: Sink
    loop: asyncio.AbstractEventLoop


class VoteLoop:
    """Steps the engines while they have something to decode.

    A member that fails stalls its model: the requests are kept and go on when enough members are back, or fail.

    Args:
        voters: by model.
        wait_seconds: how long a stalled model waits for its members.
    """

    def __init__(self, voters: dict[str, Voter], wait_seconds: float) -> None:
        self._voters, self._wait = voters, wait_seconds
        self._wake = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._handles: dict[int, tuple[str, int]] = {}
        self._stalled: dict[str, float] = {}
        self._next_handle = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ensemw2s-vote", daemon=True)
        self._thread.start()

    def start(self, model: str, request: DecodeRequest, sink: Sink) -> int:
        """Queue a text; `sink` is called in the running event loop. Raises what the engine says of a bad request."""
        listener = _Listener(sink, asyncio.get_running_loop())
        with self._wake:
            if self._closing:
                raise Unavailable("the server is shutting down")
            key = (model, self._voters[model].engine.add(request))
            self._listeners[key] = listener
            self._next_handle += 1
            self._handles[self._next_handle] = key
            self._wake.notify()
            return self._next_handle

    def cancel(self, handle: int) -> None:
        """Forget a text, if it has not ended."""
        with self._wake:
            key = self._handles.pop(handle, None)
            if key is not None and self._listeners.pop(key, None) is not None:
                self._voters[key[0]].engine.cancel(key[1])
                self._wake.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Do other work in the thread."""
        future: Future[Any] = Future()
        with self._wake:
            if self._closing:
                future.set_exception(Unavailable("the server is shutting down"))
                return future
            self._jobs.append((work, future))
            self._wake.notify()
        return future

    @property
    def rows(self) -> int:
        """Texts that hold rows."""
        return sum(voter.engine.running for voter in self._voters.values())

    @property
    def texts(self) -> int:
        """Texts that somebody waits for."""
        return len(self._listeners)

    def close(self, seconds: float) -> None:
        """Take nothing new, finish what is under way within `seconds`, fail the rest, and end the thread."""
        deadline = time.monotonic() + seconds
        with self._wake:
            self._closing = True
            self._wake.notify()
        while time.monotonic() < deadline and self._thread.is_alive() and (self._listeners or self._jobs):
            time.sleep(0.02)
        with self._wake:
            for model in self._voters:
                self._fail(model, Unavailable("the server is shutting down"))
            while self._jobs:
                future = self._jobs.popleft()[1]
                # Whoever waited may have gone.
                if future.set_running_or_notify_cancel():
                    future.set_exception(Unavailable("the server is shutting down"))
            self._wake.notify()
        self._thread.join(timeout=max(5.0, seconds))

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                busy = [m for m, v in self._voters.items() if v.engine.pending]
                ready = [m for m in busy if not self._is_stalled(m)]
                if not self._jobs and not ready:
                    if self._closing and not busy:
                        return
                    self._wake.wait(STALLED_SECONDS if busy else None)
                    continue
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                self._work(*job)
            for model in ready:
                self._step(model)

    def _work(self, work: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _step(self, model: str) -> None:
        try:
            outputs = self._voters[model].engine.step()
        except NoVoter as error:
            # Whoever names its own voters may have lost all of them; the others have theirs.
            with self._wake:
                self._fail(model, Unavailable(f"{error}; try again later"), error.requests)
            return
        except WorkerFailure as error:
            _LOG.warning("%s: a member failed (%s)", model, type(error.__cause__ or error).__name__)
            with self._wake:
                self._stalled.setdefault(model, time.monotonic() + self._wait)
            return
        except Exception as error:
            with self._wake:
                self._fail(model, error)
            return
        self._deliver(model, outputs)

    def _is_stalled(self, model: str) -> bool:
        """Whether a model waits for members; holds the lock. One that has waited long enough fails its texts."""
        deadline = self._stalled.get(model)
        if deadline is None:
            return False
        voter = self._voters[model]
        if len(voter.alive) >= voter.needed:
            del self._stalled[model]
            return False
        if time.monotonic() > deadline:
            total = len(voter.model.members)
            message = (
                f"{len(voter.alive)} of {total} members are alive, {voter.needed} are needed; try again later"
            )
            self._fail(model, Unavailable(message))
            return False
        return True

    def _deliver(self, model: str, outputs: Sequence[StepOutput]) -> None:
        ready: dict[asyncio.AbstractEventLoop, list[tuple[Sink, Sequence[StepOutput]]]] = {}
        with self._wake:
            for output in outputs:
                key = (model, output.request)
                listener = self._listeners.get(key)
                if listener is None:
                    continue
                ready.setdefault(listener.loop, []).append((listener.sink, [output]))
                if output.finish is not None:
                    del self._listeners[key]
        for loop, items in ready.items():
            _post(loop, items)

    def _fail(self, model: str, error: Exception, only: Collection[int] | None = None) -> None:
        """End all texts of a model (or only some); holds the lock. The engine's next step drops them unasked."""
        self._stalled.pop(model, None)
        for key in [k for k in self._listeners if k[0] == model and (only is None or k[1] in only)]:
            listener = self._listeners.pop(key)
            self._voters[model].engine.cancel(key[1])
            _post(listener.loop, [(listener.sink, error)])


def _post(
    loop: asyncio.AbstractEventLoop, items: Sequence[tuple[Sink, Sequence[StepOutput] | BaseException]]
) -> None:
    """Call sinks in their event loop, all with one wake-up."""

    def call() -> None:
        for sink, item in items:
            sink(item)

    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        # The loop is closed: its server has stopped, and nobody waits.
        _LOG.debug("an answer came after its server had stopped")
