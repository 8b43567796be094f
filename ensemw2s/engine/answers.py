"""One view of every system's answers, whether they were chosen or generated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.data.samples import Sample
from ensemw2s.engine.aligned import AlignedSplit
from ensemw2s.engine.byte_generation import ByteDecoder
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.generation import Generated, VoteCounts, VotedDecoder
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef, ProgressEvent, cost
from ensemw2s.engine.votes import collect_votes, submit_votes, system_choices, vote_choices


@dataclass(frozen=True)
class Ensemble:
    """A prefix of the kept members.

    Attributes:
        systems: names of the members' score files, in order.
        refs: their weights.
        alphas: (t,) their voting weights.
    """

    systems: tuple[str, ...]
    refs: tuple[ModelRef, ...]
    alphas: np.ndarray

    def first(self, t: int) -> Ensemble:
        """The ensemble after t members."""
        return Ensemble(self.systems[:t], self.refs[:t], self.alphas[:t])

    @property
    def name(self) -> str:
        """Name of its answer files."""
        return f"member-ensemble-{len(self.systems):02d}" if len(self.systems) > 1 else self.systems[0]


@dataclass(frozen=True)
class Answers:
    """Answers to one split.

    Attributes:
        values: an index a sample (multiple choice) or a text.
        confidence: (n,) in [0, 1].
        shares: multiple choice: (N,) of every choice of every sample, summing to 1 within each.
    """

    values: tuple[int | str, ...]
    confidence: np.ndarray
    shares: np.ndarray | None = None


def correct(samples: list[Sample], answers: Answers) -> np.ndarray:
    """(n,) bool: the answer is right (same index, or exact match after normalizing)."""
    if samples[0].choices is not None:
        return np.array([s.answer == v for s, v in zip(samples, answers.values, strict=True)])
    pairs = zip(samples, answers.values, strict=True)
    return np.array([normalize_answer(str(s.answer)) == normalize_answer(str(v)) for s, v in pairs])


def answers_stage(system: str, split: str) -> str:
    """Name of the stage that commits generated answers."""
    return f"answers-{system}-{split}"


def answers_path(system: str, split: str) -> Path:
    """Where they lie in the run directory."""
    return Path("answers") / f"{split}.{system}.parquet"


def ensure_model_answers(
    ctx: RunContext, pool: SupervisorPool, ref: ModelRef, system: str, splits: list[str], slot: int = 0
) -> None:
    """Make what one model's answers to these splits need, where it is not committed yet."""
    if ctx.multiple_choice:
        collect_votes(ctx, system, submit_votes(ctx, pool, slot, ref, system, splits))
    else:
        ensure_generated(ctx, pool, Ensemble((system,), (ref,), np.ones(1)), splits)


def ensure_ensemble_answers(
    ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, splits: list[str]
) -> None:
    """The same for a vote; multiple choice needs no more than its members' scores."""
    if not ctx.multiple_choice:
        ensure_generated(ctx, pool, ensemble, splits)


def ensure_generated(ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, splits: list[str]) -> None:
    """Decode the answers of one ensemble (or one model) to these splits, a stage a split."""
    side = ctx.side_splits(ensemble.systems[0])
    for split in splits:
        stage = answers_stage(ensemble.name, split)
        if ctx.store.done(stage) is not None:
            continue
        begun = time.monotonic()
        task = f"{ensemble.name}: answers to {split}"

        def progress(done: int, total: int, task: str = task) -> None:
            ctx.report(ProgressEvent(task, done, total))

        generated, counts = voted_answers(ctx, pool, ensemble, side[split], progress)
        path = ctx.store.begin(stage) / answers_path(ensemble.name, split)
        path.parent.mkdir(parents=True)
        table = pa.table(
            {
                "id": [s.id for s in side[split].samples],
                "text": [g.text for g in generated],
                "confidence": pa.array([g.confidence for g in generated], pa.float64()),
                "tokens": pa.array([g.tokens for g in generated], pa.list_(pa.int32())),
                "probabilities": pa.array([g.probabilities for g in generated], pa.list_(pa.float64())),
                "member_tokens": pa.array(
                    [g.member_tokens for g in generated], pa.list_(pa.list_(pa.int32()))
                ),
            }
        )
        pq.write_table(table, path, compression="zstd")
        flops = counts.forwarded * ctx.forward_flops(ensemble.refs[0])
        device = pool.submit(0, "device").result()
        spent = cost(time.monotonic() - begun, counts.forwarded, flops, device)
        how = {
            "certified": counts.certified,
            "asked": counts.asked,
            "full": counts.full,
            "close": counts.close,
            "completed": counts.completed,
        }
        ctx.commit(stage, {"cost": spent, **how})


def voted_answers(
    ctx: RunContext,
    pool: SupervisorPool,
    ensemble: Ensemble,
    data: EncodedSplit,
    progress: Callable[[int, int], None],
    *,
    max_new_tokens: int | None = None,
) -> tuple[list[Generated], VoteCounts]:
    """Free answers to questions, in their order, and how the vote on them went.

    Args:
        ctx: the run.
        pool: the supervisors.
        ensemble: who votes; one model of either side, too.
        data: the questions in the tokens of that side, or in segments where its members' tokens differ.
        progress: called with the answers that are finished and the answers in all.
        max_new_tokens: instead of the run's own limit.
    """
    rule, refs, batch_tokens = ctx.config.vote, ensemble.refs, ctx.config.runtime.batch_tokens
    longest = max_new_tokens or rule.max_new_tokens
    if isinstance(data, AlignedSplit):
        by_bytes = ByteDecoder(
            pool, refs, ensemble.alphas, max_new_tokens=longest, stop=rule.stop, batch_tokens=batch_tokens
        )
        return by_bytes.decode(data, progress), by_bytes.counts
    decoder = VotedDecoder(
        pool,
        refs,
        ensemble.alphas,
        ctx.side_splits(ensemble.systems[0]).tokenizer,
        max_new_tokens=longest,
        stop=rule.stop,
        top_k=rule.top_k,
        batch_tokens=batch_tokens,
        eos_ids=pool.submit(0, "end_of_text", refs[0]).result(),
        speculate=ctx.config.runtime.speculate,
    )
    return decoder.decode([e.prompt for e in data.encoded], progress), decoder.counts


def model_answers(ctx: RunContext, system: str, split: str) -> Answers:
    """One model's committed answers."""
    if ctx.multiple_choice:
        chosen = system_choices(ctx, system, split)
        return Answers(tuple(int(i) for i in chosen.index), chosen.confidence, chosen.soft)
    return _read_generated(ctx, system, split)


def ensemble_answers(ctx: RunContext, ensemble: Ensemble, split: str) -> Answers:
    """An ensemble's answers from what is committed; no model runs."""
    if ctx.multiple_choice:
        chosen = vote_choices(ctx, list(ensemble.systems), ensemble.alphas, split)
        return Answers(tuple(int(i) for i in chosen.index), chosen.confidence, chosen.soft)
    return _read_generated(ctx, ensemble.name, split)


def _read_generated(ctx: RunContext, system: str, split: str) -> Answers:
    ctx.store.require(answers_stage(system, split))
    table = pq.read_table(ctx.run_dir / answers_path(system, split), columns=["text", "confidence"])
    return Answers(
        tuple(table.column("text").to_pylist()), np.asarray(table.column("confidence").to_pylist())
    )
