"""`ensemw2s serve`: settings from the command line, and a server in this process or on Ray."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ensemw2s.errors import ConfigError, UserError
from ensemw2s.serving.settings import ServeSettings


def serve(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Serve a run until interrupted; returns the exit code.

    Args:
        arguments: run, host, port, api_keys, executor, models, update.
        overrides: further settings, ``key=value``.
    """
    given = {name: getattr(arguments, name) for name in ("host", "port", "api_keys")}
    settings = settings_from({k: v for k, v in given.items() if v is not None}, overrides)
    settings.check_exposure()
    if settings.api_keys is not None:
        from ensemw2s.serving.keys import ApiKeys

        ApiKeys(settings.api_keys)
        # Processes of Ray have another working folder. Links stay: a mounted secret is changed by moving one.
        settings = settings.model_copy(update={"api_keys": settings.api_keys.absolute()})
    models = tuple(arguments.models) if arguments.models else None
    if arguments.executor == "local" and (arguments.update or settings.most_copies > 1):
        what = "--update" if arguments.update else "more than one copy"
        raise UserError(f"{what} is for Ray Serve: leave out --executor local")
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("ensemw2s.serving").setLevel(logging.INFO)
    if arguments.executor == "local":
        serve_local(arguments.run, models, settings)
    else:
        from ensemw2s.serving.ray_server import serve_on_ray, update_on_ray

        (update_on_ray if arguments.update else serve_on_ray)(arguments.run, models, settings)
    return 0


def settings_from(values: dict[str, Any], overrides: Sequence[str] = ()) -> ServeSettings:
    """Settings from values and ``key=value`` texts.

    Raises:
        ConfigError: every problem, a line each.
    """
    merged = dict(values)
    for text in overrides:
        key, equals, value = text.removeprefix("--").partition("=")
        if not equals:
            raise ConfigError(
                f"{text!r} is not understood: settings are given as key=value, for example max_queue=10"
            )
        merged[key] = None if value in ("", "null", "none") else value
    try:
        return ServeSettings(**merged)
    except ValidationError as error:
        names = ", ".join(ServeSettings.model_fields)
        lines = []
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"])
            if not field:
                lines.append(str(problem["msg"]).removeprefix("Value error, "))
            elif problem["type"] == "extra_forbidden":
                lines.append(f"{field} is no setting of a server: there are {names}")
            else:
                lines.append(f"{field}: {problem['msg']}, got {problem['input']!r}")
        raise ConfigError(lines) from None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port"
        ) from error


def serve_local(run_dir: Path | str, models: tuple[str, ...] | None, settings: ServeSettings) -> None:
    """Everything in this process; returns when it is interrupted and what was under way has ended."""
    import uvicorn

    from ensemw2s.serving.app import build_app
    from ensemw2s.serving.backend import local_backend
    from ensemw2s.serving.opening import open_run

    run = open_run(run_dir, models)
    with listen(settings.host, settings.port) as listener:
        app = build_app(local_backend(run, settings), settings)
        server = uvicorn.Server(uvicorn_config(app, settings))
        print(settings.where(list(run.ensembles), listener.getsockname()[1]), file=sys.stderr)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            # uvicorn raises the signal again once it has shut down.
            print("stopped", file=sys.stderr)


def uvicorn_config(app: Any, settings: ServeSettings) -> Any:
    """How uvicorn is run: no log of its own, no name in the answers, no web sockets."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
