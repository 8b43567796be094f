"""A small trained run that all tests of serving share, and its application in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.serving.app import build_app
from ensemw2s.serving.backend import VoteBackend, local_backend
from ensemw2s.serving.command import listen, uvicorn_config
from ensemw2s.serving.opening import open_run
from ensemw2s.serving.settings import ServeSettings

MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def served_run(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two members, both of which vote, and its student."""
    config = make_tiny(
        tmp_path_factory.mktemp("served"),
        vote__rounds="all",
        weak__training__epochs=1,
        strong__training__epochs=1,
        # A token a step: with drafts an answer would be over before a test can do something to it.
        runtime__speculate="off",
    )
    with pytest.MonkeyPatch.context() as patch:
        # Drawing the report takes longer than all the rest, and nobody reads it here.
        patch.setattr("ensemw2s.runs.report.write_report", lambda run_dir: None)
        return api.run(ExperimentConfig.model_validate(config)).run_dir


@pytest.fixture(scope="session")
def backend(served_run: Path) -> Iterator[VoteBackend]:
    """Its models, loaded once."""
    made = local_backend(open_run(served_run), ServeSettings())
    yield made
    asyncio.run(made.close(5.0))


class Client:
    """Synchronous requests to an application; its event loop runs in a thread of its own."""

    def __init__(self, app: Any, headers: dict[str, str] | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://localhost",
            headers=headers,
            timeout=60.0,
        )

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self.run(self._http.request(method, path, **options))

    def begin(self, method: str, path: str, **options: Any) -> Any:
        """A request under way, as a future."""
        work = self._http.request(method, path, **options)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return self.request("POST", path, json=body, **options)

    def run(self, work: Any) -> Any:
        """Run a coroutine in the application's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def close(self) -> None:
        self.run(self._http.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def serve(backend: VoteBackend) -> Iterator[Callable[..., Client]]:
    """Makes a client of an application with given settings (and headers)."""
    made: list[Client] = []

    def make(headers: dict[str, str] | None = None, **settings: Any) -> Client:
        # The lifespan is not run: the models stay loaded for the other tests.
        made.append(Client(build_app(backend, ServeSettings(**settings)), headers))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="session")
def serve_real(backend: VoteBackend) -> Iterator[Callable[..., str]]:
    """Starts servers on real sockets, with given settings; returns their addresses."""
    with ExitStack() as running:

        def start(**given: Any) -> str:
            settings = ServeSettings(port=0, **given)
            config = uvicorn_config(build_app(backend, settings), settings)
            # The models stay loaded for the other tests.
            config.lifespan = "off"
            server = uvicorn.Server(config)
            listener = running.enter_context(listen(settings.host, settings.port))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            running.callback(thread.join, 60)
            running.callback(setattr, server, "should_exit", True)
            return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

        yield start


@pytest.fixture(scope="session")
def real_url(serve_real: Callable[..., str]) -> str:
    """The address of a server with default settings."""
    return serve_real()


@pytest.fixture
def held(backend: VoteBackend) -> Iterator[Callable[[], None]]:
    """The thread that votes stands still until this is called (or the test ends)."""
    release = threading.Event()
    entered = threading.Event()

    def wait() -> None:
        entered.set()
        release.wait(60)

    backend._loop.call(wait)
    assert entered.wait(60)
    yield release.set
    release.set()


@pytest.fixture
def client(serve: Callable[..., Client]) -> Client:
    """A client of an application with default settings."""
    return serve()
