"""Clients of the endpoint, for Locust; benchmarks/serve.py starts it and reads what it writes.

LOAD names a JSON file: prompts, max_tokens, model, stream, requests (or seconds), rate (open loop: Poisson arrivals a second,
whoever still waits; null: closed loop, each client asks again when it is answered), seed, output.

The output is a JSON list of {status, sent, first, end, tokens}, in seconds of one clock; `first` is when the first event came.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser

LOAD: dict[str, Any] = json.loads(Path(os.environ["LOAD"]).read_text(encoding="utf-8"))
DONE: list[dict[str, Any]] = []
PLACES = itertools.count()
BEGUN = time.perf_counter()
#: A client that was told to come later does.
PAUSE_SECONDS = 0.2


def ask(client: Any, place: int) -> None:
    """One request, and what became of it."""
    prompts = LOAD["prompts"]
    body = {
        "model": LOAD["model"],
        "prompt": prompts[place % len(prompts)],
        "max_tokens": LOAD["max_tokens"],
        "temperature": 0,
    }
    if LOAD["stream"]:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    told: dict[str, Any] = {"sent": time.perf_counter(), "first": None, "tokens": 0}
    with client.post("/v1/completions", json=body, stream=LOAD["stream"], catch_response=True) as answer:
        told["status"] = answer.status_code
        if answer.status_code == 200 and LOAD["stream"]:
            last = before = b""
            while event := answer.stream.readline(b"\n\n"):
                told["first"] = told["first"] or time.perf_counter()
                last, before = event, last
            if last.strip() != b"data: [DONE]":
                told["status"] = 0
                answer.failure("the stream broke off")
            else:
                told["tokens"] = json.loads(before.removeprefix(b"data: "))["usage"]["completion_tokens"]
        elif answer.status_code == 200:
            told["tokens"] = answer.json()["usage"]["completion_tokens"]
        told["end"] = time.perf_counter()
        if answer.status_code == 429:
            answer.success()
            gevent.sleep(PAUSE_SECONDS)
    DONE.append(told)


def more() -> int | None:
    """The next request's place, None when there is none left."""
    if LOAD["seconds"] is not None:
        return next(PLACES) if time.perf_counter() - BEGUN < LOAD["seconds"] else None
    place = next(PLACES)
    return place if place < LOAD["requests"] else None


class Client(FastHttpUser):
    """Closed loop: one request at a time. Open loop: the only one, which sends them when it is time."""

    wait_time = constant(0)
    concurrency = 4096
    network_timeout = connection_timeout = 600.0

    @task
    def work(self) -> None:
        if LOAD["rate"] is not None:
            self.arrivals()
        elif (place := more()) is not None:
            ask(self.client, place)
            return
        self.environment.left -= 1
        if self.environment.left == 0:
            self.environment.runner.quit()
        raise StopUser

    def arrivals(self) -> None:
        draw, due, under_way = random.Random(LOAD["seed"]), time.perf_counter(), []
        while (place := more()) is not None:
            due += draw.expovariate(LOAD["rate"])
            gevent.sleep(max(0.0, due - time.perf_counter()))
            under_way.append(gevent.spawn(ask, self.client, place))
        gevent.joinall(under_way)


@events.test_start.add_listener
def begin(environment: Any, **kwargs: Any) -> None:
    """How many clients are at work."""
    environment.left = environment.parsed_options.num_users


@events.quitting.add_listener
def write(environment: Any, **kwargs: Any) -> None:
    """All that was measured."""
    Path(LOAD["output"]).write_text(json.dumps(DONE), encoding="utf-8")
