"""A request checked against the server's limits and turned into rows to decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.data.samples import Sample, content_id
from ensemw2s.engine.decoding.messages import DecodeRequest
from ensemw2s.serving.errors import invalid
from ensemw2s.serving.prompts import chat_prompt, check_lengths, check_model, completion_prompts
from ensemw2s.serving.protocol import ServedModel
from ensemw2s.serving.rows import row_seeds
from ensemw2s.serving.schemas import ChatRequest, CompletionRequest, LabelRequest, Shared
from ensemw2s.serving.settings import ServeSettings


@dataclass(frozen=True, eq=False)
class Plan:
    """What a request asks for.

    Attributes:
        model: of whom.
        prompts: (p,) int32 each.
        rows: one for each prompt and answer, the answers to a prompt together; empty where nothing is decoded.
        n: answers to each prompt.
        stops: stop strings.
        logprobs: alternatives to report for every token; None where no log-probabilities are asked for.
    """

    model: ServedModel
    prompts: Sequence[np.ndarray]
    rows: Sequence[DecodeRequest]
    n: int
    stops: tuple[str, ...]
    logprobs: int | None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each once."""
        return sum(len(p) for p in self.prompts)


LABEL_CHARACTERS = 1_000_000
"""of a question, times its choices: the text is read once a choice before anything can be said about its length"""


def plan_completion(
    body: CompletionRequest, models: Mapping[str, ServedModel], settings: ServeSettings
) -> Plan:
    """Check a completion request; raises ApiError."""
    body.check()
    model = check_model(models, body.model)
    prompts = completion_prompts(model, body.prompt)
    asked = 16 if body.max_tokens is None else body.max_tokens
    limit = check_lengths(model, prompts, asked, settings, "prompt")
    return _plan(body, model, prompts, limit, body.logprobs, "logprobs", settings)


def plan_chat(body: ChatRequest, models: Mapping[str, ServedModel], settings: ServeSettings) -> Plan:
    """Check a chat request; raises ApiError."""
    body.check()
    model = check_model(models, body.model)
    prompt = chat_prompt(model, body.messages, settings.chat_template)
    if len(prompt) == 0:
        raise invalid("messages", "messages: a chat without a single token cannot be answered")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    limit = check_lengths(model, [prompt], asked, settings, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _plan(body, model, [prompt], limit, logprobs, "top_logprobs", settings)


def plan_label(
    body: LabelRequest, models: Mapping[str, ServedModel], settings: ServeSettings
) -> tuple[ServedModel, list[Sample]]:
    """Check a label request; raises ApiError."""
    model, questions = check_model(models, body.model), body.questions
    if len(questions) > settings.max_rows:
        raise invalid("input", f"input: {len(questions)} questions, one request takes {settings.max_rows}")
    choices = sum(len(q.choices or ()) for q in questions)
    if choices > settings.max_choices:
        raise invalid(
            "input", f"input: {choices} choices in all, one request takes {settings.max_choices}: send fewer"
        )
    for question in questions:
        read = len(question.question) * len(question.choices or ("",))
        if read > LABEL_CHARACTERS:
            raise invalid(
                "input",
                f"input: a question of {len(question.question):,} characters with {len(question.choices or ()):,} choices is read once a "
                f"choice, {read:,} characters in all, and {LABEL_CHARACTERS:,} are taken: shorten it, or give less choices",
            )
    if choices and model.unanswerable is not None:
        raise invalid("input", f"input: {model.unanswerable}", "unsupported_value")
    samples = [
        Sample(
            q.id or content_id(q.question, q.choices),
            q.question,
            tuple(q.choices) if q.choices else None,
            None,
        )
        for q in questions
    ]
    return model, samples


def _plan(
    body: Shared,
    model: ServedModel,
    prompts: Sequence[np.ndarray],
    limit: int,
    logprobs: int | None,
    param: str,
    settings: ServeSettings,
) -> Plan:
    n = body.n or 1
    if n > settings.max_n:
        raise invalid("n", f"n: {n}, this server gives at most {settings.max_n}")
    if n * len(prompts) > settings.max_rows:
        raise invalid(
            "prompt",
            f"{len(prompts)} prompts times n {n} are more than the {settings.max_rows} of one request",
        )
    if logprobs is not None and logprobs > settings.max_logprobs:
        raise invalid(param, f"{param}: {logprobs}, this server gives at most {settings.max_logprobs}")
    stops = body.stops
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    rows = [
        DecodeRequest(
            prompt=prompt,
            max_new_tokens=limit,
            stop=stops,
            sampling=SamplingParams(temperature, top_p, seed),
            top_logprobs=logprobs or 0,
            exact=logprobs is not None,
        )
        for prompt in prompts
        for seed in row_seeds(body.seed, n)
        if limit > 0
    ]
    return Plan(model, prompts, rows, n, stops, logprobs)
