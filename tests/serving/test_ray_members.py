"""Members behind Ray Serve's handles, with handles that fail as Ray does; no cluster."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.serve.exceptions import RayServeException

from ensemw2s.errors import ModelError, WorkerFailure
from ensemw2s.serving import ray_members
from ensemw2s.serving.deployments import log_requests
from ensemw2s.serving.ray_members import ServeMembers


class Method:
    """Answers in order; one that is an error is raised, by `remote` itself where it comes as (error,)."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def remote(self, *args: Any, **keywords: Any) -> Response:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, tuple):
            raise answer[0]
        return Response(answer)


class Response:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def result(self, timeout_s: float | None = None) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    def cancel(self) -> None:
        pass


class Handle:
    def __init__(self, call: Method, ping: Method) -> None:
        self.call, self.ping = call, ping


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ServeMembers]]:
    monkeypatch.setattr(ray_members, "PAUSE_SECONDS", 0.01)
    made: list[ServeMembers] = []

    def members(call: Method, ping: Method) -> ServeMembers:
        made.append(ServeMembers([Handle(call, ping)], 10.0))
        return made[-1]

    yield members
    for each in made:
        each.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


LOSSES = [
    ray.exceptions.ActorDiedError(),
    ray.exceptions.WorkerCrashedError(),
    ray.exceptions.NodeDiedError("gone"),
    ray.exceptions.RaySystemError("broken"),
    ray.exceptions.ObjectLostError("00", None, ""),
    ray.exceptions.OwnerDiedError("00", None, ""),
    RayServeException("no replica"),
]


@pytest.mark.parametrize("in_remote", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda e: type(e).__name__)
def test_a_member_that_is_lost_comes_back(make: Any, loss: Exception, in_remote: bool) -> None:
    members = make(Method((loss,) if in_remote else loss, 7), Method("pong"))
    back: list[int] = []
    members.on_return(back.append)
    with pytest.raises(WorkerFailure, match=type(loss).__name__):
        members.submit(0, "work").result()
    wait_until(lambda: back == [0])
    assert members.alive(0)
    assert members.submit(0, "work").result() == 7


def test_an_answer_is_fetched_once_however_it_failed(make: Any) -> None:
    """An error that is none of Ray's is the call's own; the next call is not held up by it."""
    members = make(Method(ValueError("no such format"), 7), Method("pong"))
    pending = members.submit(0, "work")
    assert members.submit(0, "work").result() == 7
    for _ in range(2):
        with pytest.raises(ValueError, match="no such format"):
            pending.result()
    assert members.alive(0)


def test_an_error_of_the_members_code_is_no_loss(make: Any) -> None:
    error = ray.exceptions.RayTaskError("work", "trace", ModelError("too long"))
    members = make(Method(error), Method("pong"))
    with pytest.raises(ModelError, match="too long"):
        members.submit(0, "work").result()
    assert members.alive(0)


def test_the_probe_goes_on_whatever_happens(make: Any) -> None:
    pings = Method((RayServeException("later"),), (KeyError("odd"),), TimeoutError(), "pong")
    members = make(Method(ray.exceptions.ActorDiedError(), 7), pings)
    calls: list[int] = []

    def returned(slot: int) -> None:
        calls.append(slot)
        if len(calls) == 1:
            raise RuntimeError("a callback failed")

    members.on_return(returned)
    with pytest.raises(WorkerFailure):
        members.submit(0, "work").result()
    wait_until(lambda: len(calls) == 2)
    assert members.submit(0, "work").result() == 7


def test_requests_are_written_to_the_replicas_log(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, stream = logging.getLogger("ensemw2s.serving"), io.StringIO()
    before = (logger.level, logger.propagate, list(logger.handlers))
    monkeypatch.setattr("sys.stderr", stream)
    logger.handlers.clear()
    try:
        log_requests()
        log_requests()
        logging.getLogger("ensemw2s.serving.guard").info("req-1 GET /health 200")
        assert stream.getvalue().count("INFO req-1 GET /health 200") == 1
    finally:
        logger.level, logger.propagate, logger.handlers[:] = before
        logger.setLevel(before[0])
