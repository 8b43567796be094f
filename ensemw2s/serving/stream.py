"""Server-sent events, and a response that ends its work the moment its client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One event."""
    return (
        b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n\n"
    )


class EventStream(Response):
    """Sends what an asynchronous generator yields.

    Args:
        chunks: closed when it ends, fails, or the client goes away.
        closed: called at last, however the response ended, with whether the client went away.
        seconds: after these the connection is cut: a client that does not read holds nothing for ever.
        headers: further headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        closed: Callable[[bool], None],
        seconds: float,
        headers: Mapping[str, str],
    ) -> None:
        self._chunks, self._closed, self._seconds = chunks, closed, seconds
        self.status_code = 200
        self.background = None
        # Proxies are asked to pass every event on at once.
        self.init_headers({"x-accel-buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(_gone(receive))
        gone = False
        try:
            await asyncio.wait(
                {sending, watching}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
            gone = not sending.done()
        except asyncio.CancelledError:
            gone = True
            raise
        finally:
            for task in (sending, watching):
                task.cancel()
            cut = True
            try:
                results = await asyncio.gather(sending, watching, return_exceptions=True)
                # Writing to a closed connection is how some servers tell that a client is gone.
                cut = isinstance(results[0], OSError)
            finally:
                self._closed(gone or cut)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
