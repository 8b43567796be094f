"""What the tests of the page do with it, and the same questions put to the server without it."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from typing import Any

from playwright import sync_api

from ensemw2s.serving.backend import VoteBackend

expect = sync_api.expect

QUESTION = "the cat in the barn"


class Steps:
    """The thread that votes takes a step each time it is told to, once there is something to decode."""

    def __init__(self, backend: VoteBackend) -> None:
        self._backend, self._begun = backend, False
        self._go = threading.Semaphore(0)
        self._jobs = [backend._loop.call(lambda: self._go.acquire(timeout=60)) for _ in range(60)]

    def take(self, count: int = 1) -> None:
        while self._backend._loop.texts == 0:
            time.sleep(0.01)
        # The thread had nothing to decode when it began to wait the first time.
        self._go.release(count if self._begun else count + 1)
        self._begun = True

    def end(self) -> None:
        self._go.release(len(self._jobs))
        for job in self._jobs:
            job.result(60)


def ask_server(url: str, path: str, **body: Any) -> Any:
    """The same question without the page: a JSON answer, or a list of events."""
    request = urllib.request.Request(
        f"{url.removesuffix('/v1')}/inspector/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        text = reply.read().decode()
    if path == "choose":
        return json.loads(text)
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


def answer_of(url: str, **body: Any) -> tuple[list[float], list[dict[str, Any]], str]:
    """Weights, tokens and text."""
    begin, *tokens, end = ask_server(url, "answer", **({"question": QUESTION, "max_tokens": 6} | body))
    return begin["weights"], tokens, end["text"]


def level(token: dict[str, Any], weights: list[float]) -> str:
    """How the members agree on a token, by the words of the page."""
    voting = [(say, w) for say, w in zip(token["members"], weights, strict=True) if say is not None]
    same = sum(w for say, w in voting if say["top"][0][0] == token["id"]) / sum(w for _, w in voting)
    return "all" if same > 0.9999 else "most" if same >= 0.5 else "few"


def ask(page: Any, text: str = QUESTION, length: int | None = 6) -> None:
    page.get_by_label("Question", exact=True).or_(page.get_by_label("Text", exact=True)).fill(text)
    if length is not None:
        page.get_by_label("At most").fill(str(length))
    page.get_by_role("button", name="Ask").click()


def finished(page: Any) -> str:
    """Waits until the answer is whole; what is said of it."""
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    return str(page.locator("#status").inner_text())


def shown_tokens(page: Any) -> list[str]:
    return [str(t) for t in page.locator("#tokens button").all_text_contents()]
