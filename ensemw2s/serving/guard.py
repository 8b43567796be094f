"""What every request passes before the application sees it: key, origin, size, time; and what is logged of it.

Pure ASGI: a response that streams is passed on as it comes, and a client that goes away is seen by the application.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ensemw2s.serving.errors import ApiError
from ensemw2s.serving.inspector.files import PAGE_PATHS
from ensemw2s.serving.keys import ApiKeys
from ensemw2s.serving.metrics import Metrics
from ensemw2s.serving.settings import ServeSettings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", *PAGE_PATHS})
_LOG = logging.getLogger(__name__)


class Guard:
    """ASGI middleware.

    Args:
        app: the application.
        settings: limits.
        keys: who may ask; None lets in everybody who asks this machine by a loopback name.
        metrics: counters.
        routes: paths that are counted by name; all others count as "other".
        posts: those that take a body.
    """

    def __init__(
        self,
        app: App,
        settings: ServeSettings,
        keys: ApiKeys | None,
        metrics: Metrics,
        routes: frozenset[str],
        posts: frozenset[str],
    ) -> None:
        self._app, self._settings, self._keys = app, settings, keys
        self._metrics, self._routes, self._posts = metrics, routes, posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0
        request_id = f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            try:
                self._check(scope)
                body = await self._body(scope, receive)
            except ApiError as error:
                await send_error(answer, error)
                return
            await self._app(scope, _replay(body, receive), answer)
        except Exception as error:
            _LOG.error("%s failed: %s", request_id, describe(error, self._settings.log_text))
            if status == 0:
                await send_error(answer, internal_error(request_id))
        finally:
            path = scope["path"]
            route = path if path in self._routes else "other"
            self._metrics.requests.labels(route, str(status or 499)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun)
            milliseconds = 1000 * (time.monotonic() - begun)
            _LOG.info("%s %s %s %d %.0f ms", request_id, scope["method"], route, status or 499, milliseconds)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._keys is None:
            # A page on the web may name any host that resolves to this machine (DNS rebinding).
            host = headers.get(b"host", b"").decode("latin-1")
            client = scope.get("client")
            remote = client is not None and not is_loopback(client[0])
            if remote or not is_loopback(_without_port(host)):
                raise ApiError(
                    403, "without API keys only requests to localhost are answered", code="host_not_allowed"
                )
        elif scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            if scheme.lower() != "bearer" or not self._keys.allows(key.strip()):
                raise ApiError(
                    401,
                    "a valid API key is needed: send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if scope["method"] == "POST" and scope["path"] in self._posts:
            # What a form on another site can send is no JSON.
            kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(
                    415, "send the header Content-Type: application/json", code="unsupported_media_type"
                )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and value.isdigit() and int(value) > limit:
                raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(
                            408, "the client went away while it sent its request", code="incomplete_body"
                        )
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"the request's body took longer than {self._settings.body_seconds:g} s", code="timeout"
            ) from None


def describe(error: BaseException, with_text: bool) -> str:
    """An error for the log: its kind and where it arose; its message, which may hold a user's text, only on request."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    message = f": {error}" if with_text else ""
    return f"{type(error).__name__}{message} at {' < '.join(reversed(frames[-6:]))}"


def internal_error(request_id: str) -> ApiError:
    """What a client learns of a failure."""
    return ApiError(500, f"the server failed on this request ({request_id})", code="internal_error")


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever comes (a client that goes away)."""
    pending = True

    async def replay() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
