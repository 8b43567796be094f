"""What the routes do, between the checked request and the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from ensemw2s.errors import DataError
from ensemw2s.serving import wire
from ensemw2s.serving.admission import Admission, Ticket
from ensemw2s.serving.errors import ApiError, invalid
from ensemw2s.serving.guard import describe, internal_error
from ensemw2s.serving.metrics import Metrics
from ensemw2s.serving.plans import Plan, plan_chat, plan_completion, plan_label
from ensemw2s.serving.protocol import Backend, ServedModel, Unavailable
from ensemw2s.serving.rows import Answer, ClientGone, collect_rows, decode_rows, unless_gone
from ensemw2s.serving.schemas import ChatRequest, CompletionRequest, LabelRequest
from ensemw2s.serving.settings import ServeSettings
from ensemw2s.serving.stream import DONE, EventStream, event
from ensemw2s.serving.stream_chunks import Batch, EventWriter, Kind, StreamWriter

T = TypeVar("T")
SLOW_READER_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


class Service:
    """The endpoints' work.

    Args:
        backend: who votes.
        settings: limits.
        admission: places.
        metrics: counters.
    """

    def __init__(
        self, backend: Backend, settings: ServeSettings, admission: Admission, metrics: Metrics
    ) -> None:
        self._backend, self._settings, self._admission, self._metrics = backend, settings, admission, metrics

    async def completion(self, body: CompletionRequest, request: Request) -> Response:
        """``/v1/completions``."""
        plan = await asyncio.to_thread(plan_completion, body, self._backend.models, self._settings)
        if body.stream:
            return await self._streamed("completion", plan, body, request)

        async def work() -> Response:
            scores = None
            if body.echo and plan.logprobs is not None:
                scores = await self._backend.score(plan.model.name, plan.prompts, plan.logprobs)
            answers = await self._collect(plan)
            # Token by token and alternative by alternative: streams and health checks do not wait for it.
            return await asyncio.to_thread(self._completion_answer, plan, body, scores, answers)

        return await self.guarded(request, work)

    def _completion_answer(
        self, plan: Plan, body: CompletionRequest, scores: Sequence[Any] | None, answers: list[Answer]
    ) -> Response:
        model, choices = plan.model, []
        # Prompts are scored where they are echoed only.
        begins = [wire.text_begins(model, ids) for ids in plan.prompts] if scores is not None else []
        for index in range(len(plan.prompts) * plan.n):
            ids = plan.prompts[index // plan.n]
            answer = answers[index] if answers else Answer(finish="length")
            text, scored = answer.text, wire.scored_answer(answer)
            if body.echo:
                echo = str(model.tokenizer.decode(ids.tolist(), skip_special_tokens=False))
                text, scored = echo + text, wire.scored_answer(answer, len(echo))
                if scores is not None:
                    place = index // plan.n
                    scored = wire.scored_prompt(ids, scores[place], begins[place]) + scored
            logprobs = None
            if plan.logprobs is not None:
                logprobs = wire.completion_logprobs(model, scored, plan.logprobs)
            reason = wire.finish_reason(answer.finish)
            choices.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
        voted = [a.voters for a in answers if a.voters is not None] + [s.voters for s in scores or ()]
        return self._answer("text_completion", "cmpl", plan, choices, answers, voted)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """``/v1/chat/completions``."""
        plan = await asyncio.to_thread(plan_chat, body, self._backend.models, self._settings)
        if body.stream:
            return await self._streamed("chat", plan, body, request)

        async def work() -> Response:
            return await asyncio.to_thread(self._chat_answer, plan, await self._collect(plan))

        return await self.guarded(request, work)

    def _chat_answer(self, plan: Plan, answers: list[Answer]) -> Response:
        choices = []
        for index, answer in enumerate(answers):
            scored = wire.scored_answer(answer)
            logprobs = (
                None if plan.logprobs is None else wire.chat_logprobs(plan.model, scored, plan.logprobs)
            )
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            reason = wire.finish_reason(answer.finish)
            choices.append(
                {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}
            )
        voted = [a.voters for a in answers if a.voters is not None]
        return self._answer("chat.completion", "chatcmpl", plan, choices, answers, voted)

    async def label(self, body: LabelRequest, request: Request) -> Response:
        """``/v1/label``."""
        model, samples = plan_label(body, self._backend.models, self._settings)

        async def work() -> Response:
            try:
                results = await self._backend.label(model.name, samples)
            except DataError as error:
                raise invalid("input", f"input: {error}") from None
            data = wire.label_data([s.id for s in samples], results)
            tokens = sum(r.tokens for r in results)
            spoken = sum(r.spoken for r in results)
            self._metrics.tokens.labels(model.name, "prompt").inc(tokens)
            self._metrics.tokens.labels(model.name, "completion").inc(spoken)
            voted = wire.voters(model, [r.voters for r in results])
            content = {
                **wire.head("list", model, "label"),
                "data": data,
                "usage": wire.usage(tokens, spoken),
                "ensemw2s": voted,
            }
            return JSONResponse(content, headers=wire.voted_header(voted))

        return await self.guarded(request, work)

    # -- shared ----------------------------------------------------------------------------------------------

    async def _collect(self, plan: Plan) -> list[Answer]:
        if not plan.rows:
            return []
        return await collect_rows(self._backend, plan.model.name, plan.rows, self._first_token(plan.model))

    def _first_token(self, model: ServedModel) -> Callable[[], None]:
        begun: float | None = time.monotonic()

        def first() -> None:
            nonlocal begun
            if begun is not None:
                self._metrics.first_token.labels(model.name).observe(time.monotonic() - begun)
                begun = None

        return first

    def _answer(
        self,
        kind: str,
        prefix: str,
        plan: Plan,
        choices: list[dict[str, Any]],
        answers: list[Answer],
        voted: list[int],
    ) -> Response:
        spoken = sum(len(a.steps) for a in answers)
        self.count(plan, spoken)
        self.log_text(plan, [a.text for a in answers])
        members = wire.voters(plan.model, voted)
        content = {
            **wire.head(kind, plan.model, prefix),
            "choices": choices,
            "usage": wire.usage(plan.prompt_tokens, spoken),
            "ensemw2s": members,
        }
        return JSONResponse(content, headers=wire.voted_header(members))

    def count(self, plan: Plan, spoken: int) -> None:
        """Count a request's tokens."""
        self._metrics.tokens.labels(plan.model.name, "prompt").inc(plan.prompt_tokens)
        self._metrics.tokens.labels(plan.model.name, "completion").inc(spoken)

    def log_text(self, plan: Plan, texts: list[str]) -> None:
        """Prompts and answers, where the operator asked for them."""
        if self._settings.log_text:
            prompts = [plan.model.tokenizer.decode(p.tolist()) for p in plan.prompts]
            _LOG.info("prompts %r answers %r", prompts, texts)

    async def guarded(self, request: Request, work: Callable[[], Awaitable[T]]) -> T:
        """Do work in a place of its own, within the time, and not for a client that is gone."""
        ticket: Ticket | None = None

        async def placed() -> T:
            nonlocal ticket
            ticket = await self._admission.enter()
            return await work()

        try:
            async with asyncio.timeout(self._settings.request_seconds):
                return await unless_gone(request, placed())
        except ClientGone:
            self._metrics.gone.inc()
            raise ApiError(499, "the client went away", code="client_closed_request") from None
        except (TimeoutError, Unavailable) as error:
            raise self.as_api_error(error) from None
        finally:
            if ticket is not None:
                ticket.release()

    def as_api_error(self, error: BaseException, request_id: str = "") -> ApiError:
        """What a client is told of a failure that has begun."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, TimeoutError):
            return ApiError(504, f"no answer within {self._settings.request_seconds:g} s", code="timeout")
        if isinstance(error, Unavailable):
            return ApiError(503, str(error), code="members_unavailable", headers={"Retry-After": "5"})
        _LOG.error("%s failed: %s", request_id, describe(error, self._settings.log_text))
        return internal_error(request_id)

    # -- streams ---------------------------------------------------------------------------------------------

    async def _streamed(
        self, kind: Kind, plan: Plan, body: CompletionRequest | ChatRequest, request: Request
    ) -> Response:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        batches = decode_rows(self._backend, plan.model.name, plan.rows)
        return await self.stream(plan, batches, StreamWriter(kind, plan, include_usage), request)

    async def stream(
        self, plan: Plan, batches: AsyncGenerator[Batch], writer: EventWriter, request: Request
    ) -> Response:
        """Answer with events as steps come, in a place of its own and within the time.

        Args:
            plan: what was asked for.
            batches: the steps; begun when there is a place, and closed at the end.
            writer: turns them into events.
            request: whose client is watched.

        Raises:
            ApiError: what failed before the first step.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.request_seconds
        ticket: Ticket | None = None

        async def begin() -> Batch:
            nonlocal ticket
            ticket = await self._admission.enter()
            return await anext(batches)

        started = False
        try:
            first_token = self._first_token(plan.model)
            # Until the first token, what fails has a status of its own.
            try:
                async with asyncio.timeout_at(deadline):
                    first = await unless_gone(request, begin())
            except ClientGone:
                self._metrics.gone.inc()
                raise ApiError(499, "the client went away", code="client_closed_request") from None
            except (TimeoutError, Unavailable) as error:
                raise self.as_api_error(error) from None
            first_token()
            started = True
        finally:
            if not started:
                try:
                    await batches.aclose()
                finally:
                    if ticket is not None:
                        ticket.release()

        def closed(gone: bool) -> None:
            if ticket is not None:
                ticket.release()
            if gone:
                self._metrics.gone.inc()
            self.count(plan, writer.spoken)
            self.log_text(plan, writer.texts)

        chunks = self._chunks(writer, first, batches, deadline, request.state.request_id)
        left = deadline - asyncio.get_running_loop().time()
        headers = wire.voted_header(wire.voters(plan.model, writer.voted(first)))
        return EventStream(chunks, closed, left + SLOW_READER_SECONDS, headers)

    async def _chunks(
        self,
        writer: EventWriter,
        first: Batch,
        batches: AsyncGenerator[Batch],
        deadline: float,
        request_id: str,
    ) -> AsyncGenerator[bytes]:
        async with aclosing(batches):
            try:
                yield writer.opening() + writer.batch(first)
                while True:
                    async with asyncio.timeout_at(deadline):
                        batch = await anext(batches, None)
                    if batch is None:
                        break
                    if chunk := writer.batch(batch):
                        yield chunk
                yield writer.ending() + DONE
            except Exception as error:
                # The status is out already: the error is the stream's last event.
                yield event(self.as_api_error(error, request_id).body())
