"""What the page asks for, checked against the server's limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemw2s.engine.decoding.messages import DecodeRequest
from ensemw2s.serving.errors import invalid
from ensemw2s.serving.inspector.schemas import AnswerRequest
from ensemw2s.serving.plans import Plan
from ensemw2s.serving.prompts import check_lengths, check_model, completion_prompts, encode_text
from ensemw2s.serving.protocol import Backend, ServedModel
from ensemw2s.serving.settings import ServeSettings


@dataclass(frozen=True, eq=False)
class AnswerPlan:
    """One answer.

    Attributes:
        plan: its only row is greedy and has nothing given yet.
        forced: tokens that it begins with.
        earlier: tokens that are kept as far as the vote gives them.
        weights: (T,) in place of the run's, or None.
    """

    plan: Plan
    forced: tuple[int, ...]
    earlier: tuple[int, ...]
    weights: tuple[float, ...] | None

    @property
    def row(self) -> DecodeRequest:
        """What is decoded."""
        return self.plan.rows[0]

    @property
    def shares(self) -> tuple[float, ...]:
        """(T,) the members' weights as they are used."""
        return self.plan.model.weights if self.weights is None else self.weights


def question_prompt(model: ServedModel, question: str) -> np.ndarray:
    """(p,) int32: the run's own prompt, encoded as the run encodes it (spaces that end it go with the answer)."""
    return encode_text(model, model.prompt.replace("{question}", question).rstrip())


def plan_answer(body: AnswerRequest, backend: Backend, settings: ServeSettings) -> AnswerPlan:
    """Check a request; stop strings and length are the run's own.

    Raises:
        ApiError: what is wrong.
    """
    body.check()
    model = check_model(backend.models, body.model)
    vote = backend.run.ctx.config.vote
    if body.prompt is not None:
        (prompt,) = completion_prompts(model, body.prompt)
    else:
        prompt = question_prompt(model, str(body.question))
    param = "question" if body.prompt is None else "prompt"
    if len(prompt) == 0:
        raise invalid(param, f"{param}: a text without tokens cannot be continued")
    asked = body.max_tokens
    if asked is None:
        asked = min(vote.max_new_tokens, settings.max_output_tokens)
    limit = check_lengths(model, [prompt], asked, settings, param)
    if body.top > settings.max_logprobs:
        raise invalid("top", f"top: {body.top}, this server gives at most {settings.max_logprobs}")
    for name in ("forced", "earlier"):
        given = getattr(body, name)
        if given and max(given) >= model.vocab_size:
            raise invalid(name, f"{name}: token ids must be below {model.vocab_size}, got {max(given)}")
    if len(body.forced) >= limit:
        raise invalid("forced", f"forced: {len(body.forced)} tokens leave none of {limit} to vote on")
    weights = body.votes(model)
    row = DecodeRequest(
        prompt=prompt,
        max_new_tokens=limit,
        stop=vote.stop,
        top_logprobs=body.top,
        weights=weights,
        stop_after_text=True,
    )
    # The last token may have ended the answer, and one at least is voted on: it is not taken over unseen.
    earlier = tuple(body.earlier[:-1][: limit - 1 - len(body.forced)])
    plan = Plan(model, [prompt], [row], 1, row.stop, body.top)
    return AnswerPlan(plan, tuple(body.forced), earlier, weights)
