"""Optional baselines: the strong model shown solved questions, and a student of labels that are wrong at random.

The first says what the strong model could do without training; the second whether it matters which labels are wrong, or
only how many.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.data.samples import Sample
from ensemw2s.engine.answers import Ensemble, ensure_generated
from ensemw2s.engine.checks import label_correct, taught_rows
from ensemw2s.engine.context import FEW_SHOT, RunContext
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.soft_labels import labels_path
from ensemw2s.engine.tasks import ModelRef, TokenScores
from ensemw2s.engine.votes import votes_path, votes_stage, write_scores

Label = int | str | None


def ensure_few_shot(ctx: RunContext, pool: SupervisorPool) -> None:
    """Commit the strong model's answers with solved easy questions before each question."""
    splits, evaluated = ctx.side_splits(FEW_SHOT), ["easy_val", *ctx.test_splits]
    if not ctx.multiple_choice:
        ensure_generated(ctx, pool, Ensemble((FEW_SHOT,), (ModelRef("strong"),), np.ones(1)), evaluated)
        return
    for split in evaluated:
        name = votes_stage(FEW_SHOT, split)
        if ctx.store.done(name) is not None:
            continue
        texts = [(e.prompt, e.continuations) for e in splits[split].encoded]
        what = f"choices of {split} after {ctx.config.evaluation.shots} solved questions"
        scores: TokenScores = pool.submit(0, "score_texts", ModelRef("strong"), texts, what).result()
        write_scores(ctx.store.begin(name) / votes_path(FEW_SHOT, split), splits[split], scores.logprobs)
        ctx.commit(name, {"cost": scores.cost})


def random_noise_labels(ctx: RunContext) -> tuple[Label, ...]:
    """Labels of hard_train for the rows that the ensemble's student learns from, as many of them wrong, at random."""
    samples = ctx.splits["hard_train"].samples
    column = "label" if ctx.multiple_choice else "label_text"
    values = pq.read_table(ctx.run_dir / labels_path("ensemble"), columns=[column]).column(column).to_pylist()
    taught = taught_rows(ctx, "ensemble") & np.array([v != "" for v in values])
    n_wrong = int((taught & ~label_correct(ctx, "ensemble")).sum())
    return noisy_labels(samples, taught, n_wrong, np.random.default_rng([ctx.config.seed, 1]))


def noisy_labels(
    samples: list[Sample], taught: np.ndarray, n_wrong: int, rng: np.random.Generator
) -> tuple[Label, ...]:
    """The truth of the samples that are taught, but for `n_wrong` of them.

    Args:
        samples: n samples with their truth.
        taught: (n,) bool; the others get None.
        n_wrong: how many get another choice, or another sample's answer, each as likely as the others.
        rng: decides which.
    """
    labels: list[Label] = [s.answer if t else None for s, t in zip(samples, taught, strict=True)]
    texts = sorted({str(s.answer) for s in samples})
    for i in rng.choice(np.flatnonzero(taught), size=n_wrong, replace=False):
        sample = samples[int(i)]
        if sample.choices is not None:
            others: list[Label] = [c for c in range(len(sample.choices)) if c != sample.answer]
        else:
            true = normalize_answer(str(sample.answer))
            others = [t for t in texts if normalize_answer(t) != true]
        # Where every sample has the same answer there is no wrong one to give.
        if others:
            labels[int(i)] = others[int(rng.integers(len(others)))]
    return tuple(labels)
