"""The ASGI application: routes, errors in OpenAI's shape, and the guard around them. No Ray here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ensemw2s import __version__
from ensemw2s.serving.admission import Admission
from ensemw2s.serving.errors import ApiError, from_validation
from ensemw2s.serving.guard import Guard
from ensemw2s.serving.inspector.routes import add_inspector
from ensemw2s.serving.keys import ApiKeys
from ensemw2s.serving.metrics import CONTENT_TYPE, Metrics
from ensemw2s.serving.prompts import check_model
from ensemw2s.serving.protocol import Backend, ServedModel
from ensemw2s.serving.schemas import ChatRequest, CompletionRequest, ErrorBody, LabelRequest
from ensemw2s.serving.service import Service
from ensemw2s.serving.settings import ServeSettings

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
}


def build_app(backend: Backend, settings: ServeSettings) -> FastAPI:
    """The application.

    Args:
        backend: who votes; closed when the application shuts down.
        settings: limits and keys.

    Raises:
        ConfigError: the key file cannot be used, or there is none and the address is not loopback.
    """
    settings.check_exposure()
    keys = None if settings.api_keys is None else ApiKeys(settings.api_keys)
    admission = Admission(settings.max_concurrent, settings.max_queue)
    metrics = Metrics(backend, admission)
    service = Service(backend, settings, admission, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await backend.close(settings.drain_seconds)

    # The pages that FastAPI can make of the document load scripts from elsewhere.
    app = FastAPI(
        title="ensemw2s",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
    )
    app.state.admission = admission
    _add_error_handlers(app)

    @app.get("/health")
    async def health() -> Response:
        """Whether every model can answer; needs no key."""
        state = backend.health()
        members = {name: {"alive": up, "members": all_} for name, (up, all_) in state.members.items()}
        content = {"status": "ok" if state.ok else "unavailable", "models": members}
        return JSONResponse(content, status_code=200 if state.ok else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [_describe(m) for m in backend.models.values()]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """One model, its members and their shares of the vote."""
        return _describe(check_model(backend.models, name))

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue texts, by the members' vote on every token."""
        return await service.completion(body, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a chat."""
        return await service.chat(body, request)

    @app.post("/v1/label")
    async def label(body: LabelRequest, request: Request) -> Response:
        """Choose the answers to questions, with confidence and the members' votes."""
        return await service.label(body, request)

    add_inspector(app, backend, settings, service)
    app.openapi = partial(_document, app)  # type: ignore[method-assign]
    methods = {getattr(route, "path", ""): getattr(route, "methods", None) or () for route in app.routes}
    posts = frozenset(path for path, allowed in methods.items() if "POST" in allowed)
    app.add_middleware(
        Guard, settings=settings, keys=keys, metrics=metrics, routes=frozenset(methods), posts=posts
    )
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: without FastAPI's own answer to bad requests, which is never given; metrics are text."""
    document = FastAPI.openapi(app)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    metrics = document["paths"]["/metrics"]["get"]["responses"]
    metrics["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document


def _describe(model: ServedModel) -> dict[str, Any]:
    members = [{"name": n, "weight": w} for n, w in zip(model.members, model.weights, strict=True)]
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "ensemw2s",
        "context_length": model.context,
        "members": members,
    }


def _add_error_handlers(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, ApiError) else ApiError(500, "the server failed")
        return JSONResponse(known.body(), status_code=known.status, headers=known.headers)

    async def bad_request(request: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        return await api_error(request, from_validation(problems))

    async def http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        texts = {
            404: f"there is no {request.url.path[:100]} here",
            405: f"{request.method} is not allowed here",
        }
        headers = getattr(error, "headers", None)
        known = ApiError(status, texts.get(status, "the request cannot be read"), headers=headers)
        return await api_error(request, known)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, bad_request)
    app.add_exception_handler(HTTPException, http_error)
