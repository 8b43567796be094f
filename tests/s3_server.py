"""A real S3 server for tests: nanio, on a free port of the loopback address, with one user and its signature checked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
    command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(data), "--host", "127.0.0.1"]
    with (data.parent / f"{data.name}.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--no-access-log", "--log-level", "warning"],
            env={**os.environ, **user},
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
