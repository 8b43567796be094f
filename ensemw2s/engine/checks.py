"""Warnings before students are trained: do the labels beat chance, does the ceiling leave a gap?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.core.metrics import Interval, accuracy_interval, paired_bootstrap
from ensemw2s.engine.answers import (
    Answers,
    Ensemble,
    correct,
    ensemble_answers,
    model_answers,
)
from ensemw2s.engine.boosting import load_records
from ensemw2s.engine.context import RunContext

_PLURAL = {"token": "tokens", "window": "windows", "sample": "samples", "choice": "questions"}


def chance(ctx: RunContext, split: str) -> float:
    """Accuracy without a model: guessing among the choices, or always the commonest answer of easy_train."""
    samples = ctx.splits[split].samples
    if ctx.multiple_choice:
        return float(np.mean([1.0 / len(s.choices) for s in samples if s.choices]))
    answers = Counter(normalize_answer(str(s.answer)) for s in ctx.splits["easy_train"].samples)
    # most_common keeps the order of first occurrence among equals, so this does not depend on hashing.
    commonest = answers.most_common(1)[0][0]
    return float(np.mean([normalize_answer(str(s.answer)) == commonest for s in samples]))


def label_correct(ctx: RunContext, teacher: str) -> np.ndarray:
    """(n,) bool: pseudo-labels of hard_train that are right; truth is used to report and warn, never to choose."""
    column = "label" if ctx.multiple_choice else "label_text"
    values = (
        pq.read_table(ctx.run_dir / "labels" / f"{teacher}.parquet", columns=[column])
        .column(column)
        .to_pylist()
    )
    return correct(ctx.splits["hard_train"].samples, Answers(tuple(values), np.ones(len(values))))


def taught_rows(ctx: RunContext, teacher: str) -> np.ndarray:
    """(n,) bool: pseudo-labels of hard_train that a teacher's student learns from."""
    path = ctx.run_dir / "labels" / f"{teacher}.parquet"
    if "taught" not in pq.read_schema(path).names:
        # Written before there was a choice: all of them.
        return np.ones(pq.read_metadata(path).num_rows, dtype=bool)
    return np.array(pq.read_table(path, columns=["taught"]).column("taught").to_pylist(), dtype=bool)


def check_errors(ctx: RunContext) -> list[str]:
    """Warn where members' weights could not be decided by the error that is configured."""
    boosting = ctx.config.boosting
    if boosting.method != "adaboost":
        return []  # Members vote equally.
    # The first round shows all units to its member, and the configuration says so.
    later = [r for r in load_records(ctx) if r.round > 1]
    without = [r for r in later if r.errors[boosting.error_on] is None]
    if not without:
        return []
    return [
        f"boosting.error_on {boosting.error_on}: {len(without)} of {len(later)} later members left too few heavy {_PLURAL[boosting.unit]} "
        "undrawn to tell, so that their error on train decided their weight: use easy_val, reweight sample_bootstrap or a smaller unit"
    ]


def check_labels(ctx: RunContext) -> list[str]:
    """Warn where labels are not clearly better than chance."""
    warnings = []
    base = chance(ctx, "hard_train")
    for teacher in ("single", "ensemble"):
        interval = _interval(ctx, label_correct(ctx, teacher))
        if interval.low <= base:
            warnings.append(
                f"the labels of the {teacher} teacher are not clearly better than chance: {100 * interval.value:.1f} % right "
                f"({100 * interval.low:.1f} to {100 * interval.high:.1f}), chance is {100 * base:.1f} %; a student cannot learn from them"
            )
    return warnings


def check_ceiling(ctx: RunContext, single: Ensemble) -> list[str]:
    """Warn where the strong model taught the truth is not clearly better than one weak model.

    On easy_val where it is drawn like the hard data; else on test, as easy questions say nothing of what was learned
    on hard ones. Nothing is chosen by it.
    """
    split = "easy_val" if ctx.config.data.split.method == "random" else "test"
    samples = ctx.splits[split].samples
    top = correct(samples, model_answers(ctx, "student-ceiling", split)).astype(float)
    weak = correct(samples, ensemble_answers(ctx, single, split)).astype(float)
    e = ctx.config.evaluation
    gap = paired_bootstrap(top, weak, n_resamples=e.resamples, seed=ctx.config.seed, level=e.level)
    if gap.low > 0:
        return []
    return [
        f"the ceiling leaves no clear gap on {split}: {100 * top.mean():.1f} % against {100 * weak.mean():.1f} % of the "
        f"single weak model (difference {100 * gap.low:+.1f} to {100 * gap.high:+.1f} points); there is nothing for a "
        "student to recover"
    ]


def _interval(ctx: RunContext, values: np.ndarray) -> Interval:
    e = ctx.config.evaluation
    return accuracy_interval(values, n_resamples=e.resamples, seed=ctx.config.seed, level=e.level)
