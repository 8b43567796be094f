"""The page's routes. Those that tell of a run or ask a model pass the same key, limits and queue as all others."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ensemw2s.errors import DataError
from ensemw2s.serving import wire
from ensemw2s.serving.errors import invalid
from ensemw2s.serving.inspector.files import PREFIX, START, page_file
from ensemw2s.serving.inspector.plans import plan_answer
from ensemw2s.serving.inspector.samples import Samples
from ensemw2s.serving.inspector.schemas import AnswerRequest, ChooseRequest
from ensemw2s.serving.inspector.story import about, story
from ensemw2s.serving.inspector.tokens import TokenStream
from ensemw2s.serving.plans import plan_label
from ensemw2s.serving.protocol import Backend
from ensemw2s.serving.schemas import LabelRequest, Question
from ensemw2s.serving.service import Service
from ensemw2s.serving.settings import ServeSettings

Split = Annotated[str, Query(max_length=200)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
Limit = Annotated[int, Query(ge=1, le=50)]
Find = Annotated[str, Query(max_length=200)]
Id = Annotated[str, Query(max_length=2000)]


def add_inspector(app: FastAPI, backend: Backend, settings: ServeSettings, service: Service) -> None:
    """Add the page and what it asks for; none of it is in the application's OpenAPI document.

    Args:
        app: the application.
        backend: who votes, and of which run.
        settings: limits.
        service: places and time of requests.
    """
    ctx = backend.run.ctx
    samples = Samples(ctx)

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return page_file(START)

    @app.get(PREFIX + "{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return page_file(name)

    @app.get("/inspector/run", include_in_schema=False)
    async def run() -> dict[str, Any]:
        return await asyncio.to_thread(about, ctx, backend.models, samples, settings)

    @app.get("/inspector/story", include_in_schema=False)
    async def results() -> dict[str, Any]:
        return await asyncio.to_thread(story, ctx)

    @app.get("/inspector/samples", include_in_schema=False)
    async def page(split: Split, offset: Offset = 0, limit: Limit = 10, find: Find = "") -> dict[str, Any]:
        return await asyncio.to_thread(samples.page, split, offset, limit, find)

    @app.get("/inspector/truth", include_in_schema=False)
    async def truth(split: Split, id: Id) -> dict[str, Any]:
        return await asyncio.to_thread(samples.truth, split, id)

    @app.post("/inspector/answer", include_in_schema=False)
    async def answer(body: AnswerRequest, request: Request) -> Response:
        plan = await asyncio.to_thread(plan_answer, body, backend, settings)
        writer = TokenStream(backend, plan)
        return await service.stream(plan.plan, writer.batches(), writer, request)

    @app.post("/inspector/choose", include_in_schema=False)
    async def choose(body: ChooseRequest, request: Request) -> Response:
        question = Question(question=body.question, choices=body.choices)
        model, asked = plan_label(LabelRequest(model=body.model, input=question), backend.models, settings)
        weights = body.votes(model)

        async def work() -> Response:
            try:
                (result,) = await backend.label(model.name, asked, weights)
            except DataError as error:
                raise invalid("question", f"question: {error}") from None
            voted = wire.voters(model, [result.voters])
            content = {
                **wire.label_data([asked[0].id], [result])[0],
                "weights": list(model.weights if weights is None else weights),
                "members": [
                    None if name not in result.own else list(result.own[name]) for name in model.members
                ],
                "ensemw2s": voted,
            }
            return JSONResponse(content, headers=wire.voted_header(voted))

        return await service.guarded(request, work)
