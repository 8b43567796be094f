"""A real S3 server for tests: nanio, on a free port of the loopback address, with one user and its signature checked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class S3:
    """A server that runs; its buckets are folders of `data`, its objects are files."""

    port: int
    data: Path

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        (self.data / name).mkdir()
        return name

    def uri(self, path: str) -> str:
        """The URI of ``bucket/path`` on this server."""
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"


@contextmanager
def serving_s3(data: Path) -> Iterator[S3]:
    """A server for as long as the context."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    user = {
        "NANIO_ACCESS_KEY": os.environ["AWS_ACCESS_KEY_ID"],
        "NANIO_SECRET_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
    }
    with (data.parent / f"{data.name}.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, __file__, str(port)],
            env={**os.environ, **user, "NANIO_DATA_DIR": str(data)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(server, port)
            yield S3(port, data)
        finally:
            server.terminate()
            server.wait(30)


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server of the tests did not start") from None
            time.sleep(0.05)


def with_folder_markers(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """As Amazon's server, take the empty object that stands for a folder, which pyarrow writes when it has removed something; nanio
    has no such objects and would refuse it."""

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        marker = scope["type"] == "http" and scope["method"] == "PUT" and scope["path"].endswith("/")
        if not marker:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"etag", b'"0"')]})
        await send({"type": "http.response.body", "body": b""})

    return answer


if __name__ == "__main__":
    import uvicorn
    from nanio.app import build_app

    uvicorn.run(
        with_folder_markers(build_app()),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=False,
        log_level="warning",
    )
