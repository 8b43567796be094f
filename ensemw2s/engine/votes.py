"""Scores of given texts, stored once by system and split, so that any subset of members is voted again without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config.experiment import VoteConfig
from ensemw2s.core.calibration import TemperatureFit, fit_temperature
from ensemw2s.core.label_models import ChoiceVotes, Labels, Validation, label
from ensemw2s.core.voting import ScoreHow, choice_scores, mixture_logprob
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.pool import Pending, SupervisorPool
from ensemw2s.engine.tasks import ModelRef, TokenScores

#: Of members (vote.calibrate).
LOWEST_TEMPERATURE = 1e-3


@dataclass(frozen=True)
class ChoiceAnswers:
    """Chosen answers of n questions with N choices in all.

    Attributes:
        index: (n,) int64, within the question's choices.
        confidence: (n,) float64 in [0, 1], share of the chosen one.
        soft: (N,) float64, share of every choice, summing to 1 within each question.
    """

    index: np.ndarray
    confidence: np.ndarray
    soft: np.ndarray

    @classmethod
    def of(cls, labels: Labels) -> ChoiceAnswers:
        """The answers that a label model gave."""
        return cls(labels.choice, labels.confidence, labels.soft)


@dataclass(frozen=True)
class VoteRule:
    """How members' answers to a multiple-choice question become one: ``vote.label_model`` and ``vote.calibrate``."""

    label_model: str
    calibrate: bool

    @classmethod
    def of(cls, config: VoteConfig) -> VoteRule:
        """The configured one."""
        return cls(config.label_model, config.calibrate)


@dataclass(frozen=True)
class Known:
    """What label models are fitted to: the members' choices of easy_val, with its truth."""

    votes: ChoiceVotes
    truth: np.ndarray

    @classmethod
    def of(cls, ctx: RunContext, systems: Sequence[str], alphas: np.ndarray, how: ScoreHow) -> Known:
        """As the run stored it."""
        data = ctx.splits["easy_val"]
        logprobs = np.stack([read_scores(ctx, s, "easy_val") for s in systems])
        return cls(_choice_votes(alphas, data, logprobs, how), data.answers)

    @cached_property
    def fits(self) -> list[TemperatureFit]:
        """One a member. Scores by token or byte are sums divided by a length: their temperatures may be as small as one part in it."""
        of = self.votes.offsets, self.truth
        return [fit_temperature(member, *of, lowest=LOWEST_TEMPERATURE) for member in self.votes.logprobs]

    @cached_property
    def all_right(self) -> list[bool]:
        """Of each member, whether the truth is the strict best of every question: then the likelihood rises as T falls, without end, and
        the lowest T that is allowed is no estimate."""
        places = self.votes.offsets[:-1] + self.truth
        others = self.votes.logprobs.copy()
        others[:, places] = -np.inf
        best = np.maximum.reduceat(others, self.votes.offsets[:-1], axis=1)
        right: list[bool] = np.all(self.votes.logprobs[:, places] > best, axis=1).tolist()
        return right

    @property
    def temperatures(self) -> list[float]:
        """One a member (``vote.calibrate``); 1 where it cannot be fitted."""
        return [
            1.0 if right else fit.temperature for fit, right in zip(self.fits, self.all_right, strict=True)
        ]

    def warnings(self, systems: Sequence[str]) -> list[str]:
        """What a user should know of the temperatures; `systems` names the members."""
        return [
            f"vote.calibrate: {system} has all of easy_val's {self.truth.size} questions right, which says nothing of how sure it "
            "may be, so that its probabilities stay as they are: more validation samples would help"
            for system, right in zip(systems, self.all_right, strict=True)
            if right
        ]


def voting_splits(ctx: RunContext) -> list[str]:
    """The splits that every member scores choices of."""
    return ["easy_val", "hard_train", *ctx.test_splits]


def votes_stage(system: str, split: str) -> str:
    """Name of the stage that commits one system's scores of one split."""
    return f"votes-{system}-{split}"


def votes_path(system: str, split: str) -> Path:
    """Where they lie in the run directory."""
    return Path("votes") / f"{split}.{system}.parquet"


@dataclass(frozen=True)
class PendingScores:
    """Scores of choices that a supervisor was asked for, and whose model it is (see :class:`ModelRef`)."""

    index: int
    scores: Pending


def submit_votes(
    ctx: RunContext,
    pool: SupervisorPool,
    slot: int,
    ref: ModelRef,
    system: str,
    splits: list[str] | None = None,
) -> dict[str, PendingScores]:
    """Ask a supervisor for the scores of the splits that are not committed yet (multiple choice only)."""
    if not ctx.multiple_choice:
        return {}
    wanted = splits if splits is not None else voting_splits(ctx)
    return {
        s: PendingScores(ref.index, pool.submit(slot, "choice_scores", ref, s))
        for s in wanted
        if ctx.store.done(votes_stage(system, s)) is None
    }


def collect_votes(ctx: RunContext, system: str, pending: dict[str, PendingScores]) -> None:
    """Commit what was asked for, a stage a split, and empty `pending`."""
    for split in list(pending):
        asked = pending.pop(split)
        data = ctx.side_splits(system)[split]
        scores: TokenScores = data.choice_scores(asked.index, asked.scores.result())
        name = votes_stage(system, split)
        path = ctx.store.begin(name) / votes_path(system, split)
        write_scores(path, data, scores.logprobs)
        ctx.commit(name, {"cost": scores.cost})


def ask_members(pool: SupervisorPool, refs: Sequence[ModelRef], data: EncodedSplit, what: str) -> np.ndarray:
    """(T, n choice tokens) log-probabilities of the choices of some questions by the members."""
    # Members of one tokenizer are given the same list: those of one process then read it together.
    texts = {
        id(own): [(e.prompt, e.continuations) for e in own.encoded]
        for own in (data.of_member(ref.index) for ref in refs)
    }
    pending = [
        pool.submit(m, "score_texts", ref, texts[id(data.of_member(ref.index))], what)
        for m, ref in enumerate(refs)
    ]
    scores = [data.choice_scores(ref.index, p.result()) for ref, p in zip(refs, pending, strict=True)]
    return np.stack([own.logprobs for own in scores])


def write_scores(path: Path, split: EncodedSplit, logprobs: np.ndarray) -> None:
    """One row a choice: sample id, choice, and the log-probabilities of its tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [s.id for s in split.samples for _ in s.choices or ()]
    choice = [c for s in split.samples for c in range(len(s.choices or ()))]
    lists = pa.ListArray.from_arrays(
        pa.array(split.choice_token_offsets, pa.int32()), pa.array(logprobs, pa.float32())
    )
    table = pa.table({"id": ids, "choice": pa.array(choice, pa.int32()), "logprobs": lists})
    pq.write_table(table, path, compression="zstd")


def read_scores(ctx: RunContext, system: str, split: str) -> np.ndarray:
    """(n choice tokens,) float32 log-probabilities as committed."""
    ctx.store.require(votes_stage(system, split))
    column = pq.read_table(ctx.run_dir / votes_path(system, split)).column("logprobs").combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)


def answer_choices(
    ctx: RunContext, data: EncodedSplit, logprobs: np.ndarray, how: ScoreHow | None = None
) -> ChoiceAnswers:
    """Pick an answer a sample from the log-probabilities of its choices' tokens, (n choice tokens,); the score of a choice
    is ``how``, by default the configured one."""
    scores = choice_scores(
        logprobs, data.choice_token_offsets, how or ctx.config.vote.choice_score, data.choice_bytes
    )
    return ChoiceAnswers.of(Labels.from_scores(scores, data.choice_offsets))


def system_choices(ctx: RunContext, system: str, split: str) -> ChoiceAnswers:
    """The answers of one model."""
    return answer_choices(ctx, ctx.side_splits(system)[split], read_scores(ctx, system, split))


def vote_choices(ctx: RunContext, systems: list[str], alphas: np.ndarray, split: str) -> ChoiceAnswers:
    """The answers of a vote on a split, from what is stored; see :func:`vote`."""
    logprobs = np.stack([read_scores(ctx, s, split) for s in systems])
    return vote(ctx, systems, alphas, ctx.splits[split], logprobs)


def vote(
    ctx: RunContext,
    systems: list[str],
    alphas: np.ndarray,
    data: EncodedSplit,
    logprobs: np.ndarray,
    how: ScoreHow | None = None,
    rule: VoteRule | None = None,
    known: Known | None = None,
) -> ChoiceAnswers:
    """The answers of a vote; by default weighted, each choice scored by its tokens under the members' mixture
    (EnsemW2S, arXiv 2410.04571), else by the configured label model (:mod:`ensemw2s.core.label_models`).

    Args:
        systems: names of the members, in order; their stored scores of easy_val are what a label model is fitted to.
        alphas: (T,) their weights.
        data: the questions.
        logprobs: (T, n choice tokens) the members' log-probabilities. With one member there is nothing to vote on, but it is
            calibrated as others are.
        how: score of a choice, by default the configured one.
        rule: label model and calibration, by default the configured ones.
        known: what the label model is fitted to, where several votes of these members share it.
    """
    rule, how = rule or VoteRule.of(ctx.config.vote), how or ctx.config.vote.choice_score
    label_model = rule.label_model if len(systems) > 1 else "weighted"
    if label_model == "weighted" and not rule.calibrate:
        return answer_choices(ctx, data, mixture_logprob(logprobs, alphas), how)
    known = known or Known.of(ctx, systems, alphas, how)
    votes, fitted_to = _choice_votes(alphas, data, logprobs, how), known.votes
    if rule.calibrate:
        votes, fitted_to = (v.calibrated(known.temperatures) for v in (votes, fitted_to))
        if ctx.config.vote.calibrate and how == ctx.config.vote.choice_score:
            ctx.warnings.extend(w for w in known.warnings(systems) if w not in ctx.warnings)
    return ChoiceAnswers.of(label(label_model, votes, Validation(fitted_to, known.truth)))


def _choice_votes(alphas: np.ndarray, data: EncodedSplit, logprobs: np.ndarray, how: ScoreHow) -> ChoiceVotes:
    return ChoiceVotes.from_token_logprobs(
        logprobs, data.choice_token_offsets, data.choice_offsets, alphas, how, data.choice_bytes
    )
