"""What label models are given, the members' probabilities over choices, and what they return.

Rows are ragged as in `core.choices`: the choices of all questions lie one after another, N in all, and `offsets`
(n + 1,) says where each question's choices start. T is the number of members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import FloatArray, IntArray, as_alphas, as_offsets
from ensemw2s.core._ragged import as_places, row_argmax, row_log_softmax
from ensemw2s.core.choices import ScoreHow, choice_scores, mixture_logprob, pick_choice


@dataclass(frozen=True, eq=False)
class TokenVotes:
    """The tokens behind the choices, for pools that mix token by token.

    Attributes:
        logprobs: (T, n_tokens) log-probability that each member gives to each token of each choice.
        offsets: (N + 1,) where each choice's tokens start.
        how: how a choice is scored by its tokens (`core.choices.choice_scores`).
        n_bytes: (N,) bytes of each choice, for how="bytes".
    """

    logprobs: FloatArray
    offsets: IntArray
    how: ScoreHow = "sum"
    n_bytes: IntArray | None = None

    def scores(self, alphas: ArrayLike) -> FloatArray:
        """(N,) scores of the choices under the members' mixture."""
        return choice_scores(mixture_logprob(self.logprobs, alphas), self.offsets, self.how, self.n_bytes)


@dataclass(frozen=True, eq=False)
class ChoiceVotes:
    """Members' probabilities over the choices of n questions. Make it with one of the `from_` methods.

    Attributes:
        logprobs: (T, N) float64, log-probability of each choice among those of its question.
        offsets: (n + 1,) int64, where each question's choices start.
        alphas: (T,) float64 member weights, not negative, not all 0.
        tokens: what the choices' probabilities were made of, where that is known.
    """

    logprobs: FloatArray
    offsets: IntArray
    alphas: FloatArray
    tokens: TokenVotes | None = None

    @classmethod
    def from_scores(cls, scores: ArrayLike, offsets: ArrayLike, alphas: ArrayLike) -> ChoiceVotes:
        """From (T, N) scores of the choices, of which the softmax within each question is taken.

        Raises:
            ValueError: shapes that do not fit, NaN or +inf, bad weights.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"scores must be a non-empty array (members, choices), got shape {values.shape}")
        if not values.max() < np.inf:
            raise ValueError("scores must not hold NaN or +inf")
        bounds = as_offsets(offsets, values.shape[1])
        return cls(row_log_softmax(values, bounds), bounds, as_alphas(alphas, values.shape[0]))

    @classmethod
    def from_probs(cls, probs: ArrayLike, offsets: ArrayLike, alphas: ArrayLike) -> ChoiceVotes:
        """From (T, N) probabilities, not negative; each question's are scaled to the sum 1.

        Raises:
            ValueError: shapes that do not fit, a negative probability or NaN, bad weights.
        """
        values = np.asarray(probs, dtype=np.float64)
        if values.size and not (values.min() >= 0.0 and values.max() < np.inf):
            raise ValueError(
                f"probs must be finite and not negative, got minimum {values.min()}, maximum {values.max()}"
            )
        with np.errstate(divide="ignore"):
            return cls.from_scores(np.log(values), offsets, alphas)

    @classmethod
    def from_token_logprobs(
        cls,
        logprobs: ArrayLike,
        token_offsets: ArrayLike,
        choice_offsets: ArrayLike,
        alphas: ArrayLike,
        how: ScoreHow = "sum",
        n_bytes: ArrayLike | None = None,
    ) -> ChoiceVotes:
        """From (T, n_tokens) log-probabilities of the choices' tokens, as the members' votes are stored.

        Raises:
            ValueError: as `core.choices.choice_scores` does.
        """
        values = np.asarray(logprobs, dtype=np.float64)
        if values.ndim != 2 or values.size == 0:
            raise ValueError(
                f"logprobs must be a non-empty array (members, tokens), got shape {values.shape}"
            )
        lengths = None if n_bytes is None else np.asarray(n_bytes)
        scores = np.stack([choice_scores(member, token_offsets, how, lengths) for member in values])
        votes = cls.from_scores(scores, choice_offsets, alphas)
        bounds = as_offsets(token_offsets, values.shape[1], "token_offsets")
        return replace(votes, tokens=TokenVotes(values, bounds, how, lengths))

    @property
    def n_members(self) -> int:
        return len(self.logprobs)

    @property
    def n_questions(self) -> int:
        return self.offsets.size - 1

    @property
    def n_choices(self) -> IntArray:
        """(n,) choices of each question."""
        counts: IntArray = np.diff(self.offsets)
        return counts

    @property
    def answers(self) -> IntArray:
        """(T, n) each member's own choice, ties to the lowest index."""
        return row_argmax(self.logprobs, self.offsets)

    def calibrated(self, temperatures: ArrayLike) -> ChoiceVotes:
        """The same votes with each member's probabilities softened by its temperature, p^(1/T) renormalized.

        A temperature is fitted to whole choices, so the result has no `tokens`: pools mix choice by choice.

        Raises:
            ValueError: not (T,) positive finite temperatures.
        """
        values = np.asarray(temperatures, dtype=np.float64)
        if values.shape != (self.n_members,) or not (values.min() > 0.0 and values.max() < np.inf):
            raise ValueError(f"temperatures must be {self.n_members} positive finite numbers, got {values}")
        return ChoiceVotes.from_scores(self.logprobs / values[:, None], self.offsets, self.alphas)


@dataclass(frozen=True, eq=False)
class Validation:
    """The same members' votes on labelled questions (easy_val), for label models that are fitted to truth.

    Attributes:
        votes: on these questions.
        truth: (n,) index of the right choice of each.
    """

    votes: ChoiceVotes
    truth: IntArray

    def __post_init__(self) -> None:
        as_places(self.truth, self.votes.offsets)

    @property
    def true_logprobs(self) -> FloatArray:
        """(T, n) log-probability that each member gives to the right choice."""
        return self.votes.logprobs[:, self.votes.offsets[:-1] + np.asarray(self.truth)]


@dataclass(frozen=True, eq=False)
class Labels:
    """Pseudo-labels of n questions.

    Attributes:
        choice: (n,) int64, the label, an index within the question's choices.
        confidence: (n,) float64 in (0, 1], the label model's probability of that choice.
        soft: (N,) float64, its probability of every choice; sums to 1 within each question.
        weights: (T,) float64 what each member's word counts in this model, None where that is not one number.
        level: "tokens" where the members were mixed token by token, else "choices".
        details: what the fit found, plain values for reports.
    """

    choice: IntArray
    confidence: FloatArray
    soft: FloatArray
    weights: FloatArray | None = None
    level: str = "choices"
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_scores(cls, scores: FloatArray, offsets: IntArray, **more: Any) -> Labels:
        """Labels by the softmax of (N,) scores within each question; ties go to the lowest index."""
        choice, confidence = pick_choice(scores, offsets)
        return cls(choice, confidence, np.exp(row_log_softmax(scores, offsets)), **more)
