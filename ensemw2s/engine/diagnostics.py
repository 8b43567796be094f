"""What lies behind the accuracies: calibration, diversity of the members, shared errors, how flat the number of rounds is.

Truth of the test sets is used to describe, in the last stage; nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.core.calibration import expected_calibration_error, reliability_table
from ensemw2s.core.diversity import imitation, pairwise_diversity, shared_errors
from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.core.metrics import paired_bootstrap
from ensemw2s.engine.answers import (
    Answers,
    Ensemble,
    correct,
    ensemble_answers,
    model_answers,
)
from ensemw2s.engine.checks import label_correct
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.soft_labels import labels_path
from ensemw2s.engine.students import TEACHERS

CALIBRATED = ("weak_single", "weak_ensemble", "student_single", "student_ensemble", "ceiling")


def diagnose(
    ctx: RunContext, ensemble: Ensemble, selected: int, answers: Mapping[str, Mapping[str, Answers]]
) -> dict[str, Any]:
    """The part ``diagnostics`` of results.json.

    Args:
        ctx: the run.
        ensemble: all kept members.
        selected: how many vote.
        answers: of every system, by split and system.
    """
    voters = ensemble.first(selected)
    found: dict[str, Any] = {"calibration": _calibration(ctx, answers), "diversity": {}, "shared_errors": {}}
    if ctx.multiple_choice and selected > 1:
        for split in ctx.test_splits:
            # Only with choices has each member an answer of its own to every question.
            own = np.array([model_answers(ctx, s, split).values for s in voters.systems])
            truth = ctx.splits[split].answers
            found["diversity"][split] = {
                **pairwise_diversity(own, truth).means(),
                "accuracies": (own == truth).mean(axis=1).tolist(),
            }
            rows = shared_errors(
                own,
                truth,
                label=np.array(answers[split]["weak_ensemble"].values),
                student=np.array(answers[split]["student_ensemble"].values),
            )
            found["shared_errors"][split] = [row.to_dict() for row in rows]
        found["first_member"] = _first_member(ctx, voters)
    found["imitation"] = {
        split: {teacher: _imitation(ctx, split, answers[split], teacher) for teacher in TEACHERS}
        for split in ctx.test_splits
    }
    found["rounds"] = _rounds(ctx, ensemble, selected)
    return found


def _first_member(ctx: RunContext, voters: Ensemble) -> dict[str, Any]:
    """The single model, the first member, against the best member alone on easy_val; where it is weak by chance, or by its model, a
    vote is compared with little."""
    samples, e = ctx.splits["easy_val"].samples, ctx.config.evaluation
    right = [correct(samples, model_answers(ctx, s, "easy_val")).astype(float) for s in voters.systems]
    accuracies = [float(own.mean()) for own in right]
    best = int(np.argmax(accuracies))
    # The best of several is chosen on the questions that it is then judged on: as many intervals hold at a time (Bonferroni).
    level = 1.0 - (1.0 - e.level) / max(1, len(right) - 1)
    gap = paired_bootstrap(right[best], right[0], n_resamples=e.resamples, seed=ctx.config.seed, level=level)
    return {
        "accuracies": accuracies,
        "best": best,
        "difference": gap.value,
        "low": gap.low,
        "high": gap.high,
    }


def _imitation(ctx: RunContext, split: str, answers: Mapping[str, Answers], teacher: str) -> dict[str, int]:
    samples = ctx.splits[split].samples
    given = [answers[f"{who}_{teacher}"] for who in ("weak", "student")]
    right = [correct(samples, own) for own in given]
    # Texts are compared as they are with the truth.
    said = [[normalize_answer(v) if isinstance(v, str) else v for v in own.values] for own in given]
    same = np.array([a == b for a, b in zip(*said, strict=True)])
    return imitation(right[0], right[1], same & (right[0] == right[1])).to_dict()


def _calibration(ctx: RunContext, answers: Mapping[str, Mapping[str, Answers]]) -> dict[str, Any]:
    """Reliability of the confidences by split and system, and of the pseudo-labels."""
    found = {
        split: {
            system: _reliability(own[system].confidence, correct(ctx.splits[split].samples, own[system]))
            for system in CALIBRATED
        }
        for split, own in answers.items()
        if split in ctx.test_splits
    }
    found["hard_train"] = {}
    for teacher in TEACHERS:
        column = pq.read_table(ctx.run_dir / labels_path(teacher), columns=["confidence"]).column(
            "confidence"
        )
        found["hard_train"][f"weak_{teacher}"] = _reliability(column.to_numpy(), label_correct(ctx, teacher))
    return found


def _reliability(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    # Sums over choices leave a confidence a rounding error above 1.
    values = np.clip(np.asarray(confidence, dtype=np.float64), 0.0, 1.0)
    return {
        "ece": expected_calibration_error(values, right),
        "confidence": float(values.mean()),
        "accuracy": float(np.mean(right)),
        "bins": [b.to_dict() for b in reliability_table(values, right)],
    }


def _rounds(ctx: RunContext, ensemble: Ensemble, selected: int) -> list[dict[str, Any]]:
    """Each number of voting members against the selected one, on the split that selects."""
    samples, e = ctx.splits["easy_val"].samples, ctx.config.evaluation
    right = [
        correct(samples, ensemble_answers(ctx, ensemble.first(t), "easy_val")).astype(float)
        for t in range(1, len(ensemble.refs) + 1)
    ]
    rows = []
    for t, own in enumerate(right, start=1):
        gap = paired_bootstrap(
            own, right[selected - 1], n_resamples=e.resamples, seed=ctx.config.seed, level=e.level
        )
        rows.append(
            {
                "members": t,
                "accuracy": float(own.mean()),
                "difference": gap.value,
                "low": gap.low,
                "high": gap.high,
            }
        )
    return rows
