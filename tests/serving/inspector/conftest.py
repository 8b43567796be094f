"""Chromium of this machine, driven by Playwright.

A machine without Chromium skips these tests; with ENSEMW2S_REQUIRE_CHROMIUM set (as in ``.ci/run``) they fail there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ensemw2s.serving.backend import VoteBackend
from tests.serving.inspector.driving import Steps, expect, sync_api

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no Chromium on this machine: none of {', '.join(NAMES)} (Debian: apt-get install chromium)"
        if os.environ.get("ENSEMW2S_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=15_000)
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, real_url: str) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server in a browser of its own; at the end nothing was wrong in it, or came from elsewhere."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def heard(message: Any) -> None:
        # A refused request is an error in the console, too, but none of the page.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def make(url: str = real_url, **options: Any) -> Any:
        site = url.removesuffix("/v1")
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", heard)
        page.on("request", lambda request: request.url.startswith(f"{site}/") or wrong.append(request.url))
        page.goto(f"{site}/")
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def steps(backend: VoteBackend) -> Iterator[Steps]:
    made = Steps(backend)
    yield made
    made.end()
