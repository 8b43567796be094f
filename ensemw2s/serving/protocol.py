"""What the HTTP side asks of the voting side; plain data, no Ray and no web framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ensemw2s.data.samples import Sample
from ensemw2s.engine.decoding.messages import Decision, DecodeRequest, StepOutput
from ensemw2s.errors import EnsemW2SError
from ensemw2s.serving.opening import OpenedRun


class Unavailable(EnsemW2SError):
    """Too few members are alive to answer; the same request may work a little later."""


@dataclass(frozen=True)
class TextScores:
    """Voted scores of one given text.

    Attributes:
        logprobs: (n - 1,) float64, of every token but the first, given those before it.
        top: per position (as logprobs) the most probable tokens (id, logprob), best first.
        voters: members that voted.
    """

    logprobs: np.ndarray
    top: list[list[tuple[int, float]]]
    voters: int


@dataclass(frozen=True)
class LabelResult:
    """The label of one question.

    Attributes:
        choice: index into the choices; None for a question without choices.
        text: the choice, or the generated answer.
        confidence: in [0, 1].
        scores: per choice its share of the vote (softmax over the choices' scores); empty without choices.
        votes: member -> its own choice (index), or None where the answer was generated.
        tokens: tokens of the question (and choices) that were read.
        voters: the fewest members that voted on any part of it.
        spoken: tokens that were generated, 0 for a question with choices.
        own: member -> the shares that it alone gives the choices; empty without choices.
    """

    choice: int | None
    text: str
    confidence: float
    scores: tuple[float, ...]
    votes: Mapping[str, int] | None
    tokens: int
    voters: int
    spoken: int = 0
    own: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ServedModel:
    """A model that can be asked for: the ensemble, or the student as an ensemble of one.

    Attributes:
        name: as clients call it.
        tokenizer: of all of its members.
        context: longest text in tokens, None where the models name none.
        vocab_size: token ids are below it.
        members: names of the members, in order.
        weights: their shares of the vote, adding up to 1.
        prompt: template of the run's questions, with ``{question}``.
        add_bos: put the begin-of-text token before a prompt.
        created: Unix time.
        unanswerable: why questions with choices are refused; None where they are answered.
    """

    name: str
    tokenizer: Any
    context: int | None
    vocab_size: int
    members: tuple[str, ...]
    weights: tuple[float, ...]
    prompt: str
    add_bos: bool
    created: int
    unanswerable: str | None = None


@dataclass(frozen=True)
class Health:
    """Members alive and in all, by model; ``ok`` when every model can answer."""

    ok: bool
    members: Mapping[str, tuple[int, int]]
    rows: int = 0


Sink = Callable[[Sequence[StepOutput] | BaseException], None]
"""receives the steps of one text in order, or what ended it; called in the event loop's thread"""


class Backend(Protocol):
    """The voting side. All methods are called from the event loop and do not block it."""

    @property
    def run(self) -> OpenedRun:
        """The run that is served."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by name."""

    def start(self, model: str, request: DecodeRequest, sink: Sink) -> int:
        """Begin to continue a text; returns a handle for :meth:`cancel`."""

    def cancel(self, handle: int) -> None:
        """Forget a text and free its row; nothing happens where it has ended."""

    async def score(self, model: str, texts: Sequence[np.ndarray], top: int) -> list[TextScores]:
        """Voted scores of every token of given texts, each (n,) int32 with n >= 2."""

    async def judge(
        self,
        model: str,
        prompt: np.ndarray,
        tokens: Sequence[int],
        *,
        forced: int,
        top: int,
        weights: tuple[float, ...] | None,
    ) -> list[Decision]:
        """The votes at the places of given tokens behind a prompt, each after the given ones before it.

        Of the first `forced` tokens the record is of the token itself, of the others of what was voted there.
        """

    async def label(
        self, model: str, samples: Sequence[Sample], weights: tuple[float, ...] | None = None
    ) -> list[LabelResult]:
        """Choose (or generate) the answers to questions; `weights` are the members', in place of the run's.

        Raises:
            DataError: a question cannot be encoded.
        """

    def health(self) -> Health:
        """Who is alive."""

    async def close(self, seconds: float) -> None:
        """End what is under way, within `seconds`, and free everything."""
