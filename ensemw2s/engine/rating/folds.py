"""Out-of-fold answers: each sample is scored by models that were trained on the other folds, with the usual training."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.core.choices import choice_scores
from ensemw2s.core.difficulty import FoldScores, check_out_of_fold
from ensemw2s.core.label_models.votes import Labels
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.pool import Pending, SupervisorPool
from ensemw2s.engine.rating.plan import SPLIT, FoldJob, FoldPlan
from ensemw2s.engine.tasks import MemberTask, ModelRef, TokenScores


@dataclass(frozen=True, eq=False)
class FoldAnswers:
    """What the models say about all samples, each from the fold that held it out.

    Attributes:
        parts: by fold, with the ids that its models were trained on.
        right: (models, n) bool; row m is weak model m // repeats, trained once a fold.
    """

    parts: list[FoldScores]
    right: np.ndarray


@dataclass(frozen=True)
class _Work:
    """A training under way and the scoring after it; `rows` are those that it was given to train on."""

    job: FoldJob
    rows: np.ndarray
    training: Pending
    scoring: Pending


def answer_folds(ctx: RunContext, pool: SupervisorPool, plan: FoldPlan) -> FoldAnswers:
    """Train and score every fold; finished trainings are taken from the work folder.

    Raises:
        ValueError: a sample would be rated by a model that was trained on it or on its question.
    """
    waiting: deque[_Work] = deque()
    missing = [job for job in plan.jobs if ctx.store.done(job.stage) is None]
    if len(missing) < len(plan.jobs):
        ctx.say(f"{len(plan.jobs) - len(missing)} of {len(plan.jobs)} trainings are there already")
    for slot, job in enumerate(missing):
        # As many at a time as there are supervisors, so that a training is committed as soon as it is done.
        while len(waiting) >= pool.size:
            _commit(ctx, plan, waiting.popleft())
        waiting.append(_submit(ctx, pool, plan, job, slot))
    while waiting:
        _commit(ctx, plan, waiting.popleft())
    answers = _read(ctx, plan)
    check_out_of_fold(plan.ids, answers.parts, groups=plan.groups)
    return answers


def _submit(ctx: RunContext, pool: SupervisorPool, plan: FoldPlan, job: FoldJob, slot: int) -> _Work:
    split = ctx.splits[SPLIT]
    rows = np.flatnonzero(plan.fold != job.fold)
    lengths = np.diff(split.of_member(job.index).target_offsets)[rows]
    scratch = ctx.store.scratch(job.stage)
    task = MemberTask(
        f"{_name(plan, job)}: training",
        job.index,
        plan.config.seed * 1000 + job.repeat + 1,
        rows,
        np.ones(int(lengths.sum())),
        lengths.astype(np.float64),
        scratch / job.stage,
        scratch / "checkpoints",
    )
    data = _held_out(ctx, plan, job.fold).of_member(job.index)
    texts = [
        (e.prompt, e.continuations if data.multiple_choice else (target,))
        for e, target in zip(data.encoded, data.targets, strict=True)
    ]
    training = pool.submit(slot, "train_member", task)
    ref = ModelRef("weak", job.index, task.output)
    return _Work(job, rows, training, pool.submit(slot, "score_texts", ref, texts, "held-out samples"))


def _commit(ctx: RunContext, plan: FoldPlan, work: _Work) -> None:
    work.training.result()
    scores: TokenScores = work.scoring.result()
    job = work.job
    # One model at a time: its own tokens serve.
    data = _held_out(ctx, plan, job.fold).of_member(job.index)
    confidence, right = judge(data, scores, plan.config.vote.choice_score)
    staging = ctx.store.begin(job.stage)
    (staging / "folds").mkdir()
    rated = pa.table({"id": [s.id for s in data.samples], "confidence": confidence, "right": right})
    pq.write_table(rated, staging / _scores_path(job), compression="zstd")
    trained_on = pa.table({"id": [plan.samples[row].id for row in work.rows]})
    pq.write_table(trained_on, staging / _trained_path(job), compression="zstd")
    ctx.store.commit(job.stage)
    ctx.say(f"{_name(plan, job)}: {right.mean():.1%} of {len(right)} held-out samples right")


def judge(data: EncodedSplit, scores: TokenScores, how: str) -> tuple[np.ndarray, np.ndarray]:
    """How sure a model is of the truth, and whether it answers right.

    With choices: the share of the right choice (softmax of the choices' scores), and whether it is the largest. Free
    answers: the geometric mean of the probabilities of the answer's tokens, exp(mean log-probability), and whether greedy
    decoding gives exactly the answer (every token of it and the end of text is the likeliest).

    Args:
        data: n labelled samples.
        scores: of every token of all choices, or of the target tokens.
        how: score of a choice, ``vote.choice_score``.

    Returns:
        (n,) float64 in [0, 1] and (n,) bool.
    """
    if data.multiple_choice:
        totals = choice_scores(scores.logprobs, data.choice_token_offsets, how, data.choice_bytes)  # type: ignore[arg-type]
        labels = Labels.from_scores(totals, data.choice_offsets)
        share = labels.soft[data.choice_offsets[:-1] + data.answers]
        return np.clip(share, 0.0, 1.0), labels.choice == data.answers
    starts, ends = data.target_offsets[:-1], data.target_offsets[1:]
    logprobs = scores.logprobs.astype(np.float64)
    # The end-of-text token is no part of an answer's score.
    logprobs[ends - 1] = 0.0
    means = np.add.reduceat(logprobs, starts) / (ends - starts - 1)
    right = np.logical_and.reduceat(scores.hits.astype(bool), starts)
    return np.clip(np.exp(means), 0.0, 1.0), right


def _read(ctx: RunContext, plan: FoldPlan) -> FoldAnswers:
    place = {sample_id: i for i, sample_id in enumerate(plan.ids)}
    per_fold = len(plan.jobs) // plan.options.n_folds
    right = np.zeros((per_fold, len(place)), dtype=bool)
    parts = []
    for fold in range(plan.options.n_folds):
        jobs = [job for job in plan.jobs if job.fold == fold]
        tables = [pq.read_table(ctx.run_dir / _scores_path(job)) for job in jobs]
        ids = tuple(tables[0].column("id").to_pylist())
        for m, table in enumerate(tables):
            right[m, [place[i] for i in ids]] = table.column("right").to_numpy()
        trained_on = frozenset(
            i
            for job in jobs
            for i in pq.read_table(ctx.run_dir / _trained_path(job)).column("id").to_pylist()
        )
        confidence = np.stack([table.column("confidence").to_numpy() for table in tables])
        parts.append(FoldScores(fold, trained_on, ids, confidence))
    return FoldAnswers(parts, right)


def _held_out(ctx: RunContext, plan: FoldPlan, fold: int) -> EncodedSplit:
    return ctx.splits.encode([s for s, own in zip(plan.samples, plan.fold, strict=True) if own == fold])


def _name(plan: FoldPlan, job: FoldJob) -> str:
    model = plan.config.weak.models[job.index].display_name
    number = f" #{job.repeat + 1}" if plan.options.n_repeats > 1 else ""
    return f"fold {job.fold + 1} of {plan.options.n_folds}, {model}{number}"


def _scores_path(job: FoldJob) -> Path:
    return Path("folds") / f"{job.stage}.parquet"


def _trained_path(job: FoldJob) -> Path:
    return Path("folds") / f"{job.stage}.trained_on.parquet"
