"""What a voted decode is asked, what it answers, and what travels between the vote and the members."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.engine.packing import Packed
from ensemw2s.engine.tasks import TopK

Finish = Literal["stop", "length", "eos"]
Path = Literal["certified", "candidates", "wider", "full", "drawn"]
Speculate = Literal["auto", "off", "ngram"]
PATHS: tuple[Path, ...] = ("certified", "candidates", "wider", "full", "drawn")


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """One text to be continued.

    Attributes:
        prompt: (p,) integer token ids, p >= 1.
        max_new_tokens: longest answer in tokens, at least 1.
        stop: strings that end the answer and are no part of it.
        eos_ids: end-of-text ids; None is the engine's.
        sampling: temperature, top-p and seed; greedy by default.
        top_logprobs: how many of the most probable tokens of the mixture to report for each token.
        weights: (T,) voting weights instead of the engine's; a member of weight 0 is not asked.
        stop_after_text: stop strings count only after the first visible character.
        given: (g,) tokens that the answer begins with, g < max_new_tokens: read, not voted. They count in its length,
            its text and its seed as if they had been voted.
        exact: whether the probability of each token, and each member's, are to be exactly known. If not they may be too low
            where a member did not send the token, and no question is asked for them; with top_logprobs they are exact anyway.
    """

    prompt: np.ndarray
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    top_logprobs: int = 0
    weights: tuple[float, ...] | None = None
    stop_after_text: bool = False
    given: tuple[int, ...] = ()
    exact: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if len(self.given) >= self.max_new_tokens:
            raise ValueError(
                f"{len(self.given)} tokens are given of an answer of at most {self.max_new_tokens}: none is left to vote on"
            )
        if self.top_logprobs < 0:
            raise ValueError(f"top_logprobs must be at least 0, got {self.top_logprobs}")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"stop must be a tuple of strings that are not empty, got {self.stop!r}")


@dataclass(frozen=True)
class MemberSay:
    """What one member said about one token.

    Attributes:
        tokens: its most probable tokens, descending.
        probabilities: theirs.
        voted: its probability of the token that was voted.
    """

    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    voted: float


@dataclass(frozen=True)
class Decision:
    """One voted token and how it came about.

    Attributes:
        token: its id.
        probability: its probability under the mixture (at temperature 1), in (0, 1]; a lower bound, from 0 on, where the request was
            not exact.
        path: how it was decided. certified: from what the members sent; candidates: after the exact values of
            a few tokens; wider: after twice as many tokens; full: from the whole rows; drawn: sampled
            from one member's own distribution.
        top: the most probable tokens of the mixture and their probabilities, as many as asked for.
        members: what each member said; None for one that had no vote.
        runner_up: no other token's probability is above this.
        completed: certified, and then members were asked for their probabilities of it.
    """

    token: int
    probability: float
    path: Path
    top: tuple[tuple[int, float], ...]
    members: tuple[MemberSay | None, ...]
    runner_up: float = 0.0
    completed: bool = False

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability, -inf for 0 (a token that none of the members gives any)."""
        return math.log(self.probability) if self.probability > 0.0 else -math.inf


@dataclass(frozen=True)
class StepOutput:
    """One token of one request.

    Attributes:
        request: id that ``add`` gave.
        index: place of the token in the answer, from 0.
        decision: the token and who voted for what.
        text: what can be shown now: whole characters, stop strings held back. The texts of a request joined
            are its answer; the first one begins with that of the tokens that were given.
        finish: why the request ends with this token (end-of-text, a stop string, or its length), else None.
        begins: characters of the answer before the text of this token, stop strings not cut off; tokens that share
            a character begin with it. 0 where nobody looks at the text.
    """

    request: int
    index: int
    decision: Decision
    text: str
    finish: Finish | None
    begins: int = 0


@dataclass
class DecodeCounts:
    """What a decode took.

    Attributes:
        paths: tokens decided by each path.
        completed: certified tokens whose probability took a further question.
        steps: calls to all members.
        extra_calls: further questions to members.
        forwarded: tokens that the members read.
        losses: decodes that members lost.
        drafted, stood: tokens that were drafted, and those of them that the vote gave, too.
        close: greedy tokens whose lead over the next is within the rounding of the members' number format: another batch, or
            a draft, may have given the other one.
    """

    paths: dict[Path, int] = field(default_factory=lambda: dict.fromkeys(PATHS, 0))
    steps: int = 0
    completed: int = 0
    extra_calls: int = 0
    forwarded: int = 0
    losses: int = 0
    drafted: int = 0
    stood: int = 0
    close: int = 0

    @property
    def decisions(self) -> int:
        """Tokens decided."""
        return sum(self.paths.values())


@dataclass(frozen=True, eq=False)
class MemberStep(Packed):
    """One call to one member.

    Attributes:
        session: name of the decode; a member that does not know it has lost its cache.
        begin: forget any decode before and begin this session.
        keep: (n,) int32 rows that go on, in their new order; None where all do.
        tokens: (n,) int32, the token that each of them is continued by.
        prompts: texts of new rows, appended after them.
        k: tokens to send.
        draw_rows, draw_uniforms: (d,) distributions to draw a token of, and the numbers in [0, 1) to draw by.
        stand: (m,) int32, of the tokens that each row was last continued by, how many stand, the others having been drafted in
            vain; rows as they were before `keep`. None: all.
        drafts: (n, d) int32, what each row may go on with behind its token, then -1; None: nothing. Each of these tokens has a
            distribution behind it, too, which the reply lists after that of the row's token.
    """

    session: str
    begin: bool
    keep: np.ndarray | None
    tokens: np.ndarray
    prompts: tuple[np.ndarray, ...]
    k: int
    draw_rows: np.ndarray
    draw_uniforms: np.ndarray
    stand: np.ndarray | None = None
    drafts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class MemberReply(Packed):
    """The answer: the most probable tokens at the distributions of all rows, and the drawn tokens, (d,) int64."""

    top: TopK
    drawn: np.ndarray


@dataclass(frozen=True)
class MemberFacts:
    """What the scheduler needs to know of a member.

    Attributes:
        vocab_size: V.
        max_positions: context length; None: no limit.
        can_enter: whether new rows may enter beside others, and drafted tokens be taken back.
        rounding: relative distance of neighbouring numbers in the format that it computes in.
    """

    vocab_size: int
    max_positions: int | None
    can_enter: bool
    rounding: float = 0.0
