"""What another score of a choice (``vote.choice_score``) would have given, from the stored log-probabilities; no model runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemw2s.core.metrics import paired_bootstrap
from ensemw2s.core.voting import SCORE_HOWS, ScoreHow
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.votes import system_choices, vote_choices

CHOOSING = "easy_val"
TAUGHT = "hard_train"


def other_choice_scores(ctx: RunContext, voters: Ensemble, systems: dict[str, str]) -> dict[str, Any]:
    """The part ``diagnostics.choice_scores`` of results.json; empty where every choice is one token, or answers are free.

    Args:
        ctx: the run.
        voters: the members that vote.
        systems: names of single models and those of their score files.

    Returns:
        ``accuracy`` by split, score and system (the vote is ``weak_ensemble``), and ``differences``: of the vote's accuracy on
        easy_val with each other score from that with the configured one, with the paired interval. The labels were given, and
        members and students trained, with the configured score.
    """
    if not ctx.multiple_choice or not _has_long_choices(ctx):
        return {}

    def right_answers(split: str, how: ScoreHow) -> dict[str, np.ndarray]:
        # Students are never asked the questions that they learn from.
        asked = {n: files for n, files in systems.items() if split != TAUGHT or n == "weak_single"}
        chosen = {name: system_choices(ctx, files, split, how) for name, files in asked.items()}
        chosen["weak_ensemble"] = vote_choices(ctx, list(voters.systems), voters.alphas, split, how)
        return {name: own.index == ctx.splits[split].answers for name, own in chosen.items()}

    splits = (CHOOSING, *ctx.test_splits, TAUGHT)
    right = {split: {how: right_answers(split, how) for how in SCORE_HOWS} for split in splits}
    e, own = ctx.config.evaluation, ctx.config.vote.choice_score
    differences = {}
    for how in SCORE_HOWS:
        if how != own:
            gap = paired_bootstrap(
                right[CHOOSING][how]["weak_ensemble"].astype(float),
                right[CHOOSING][own]["weak_ensemble"].astype(float),
                n_resamples=e.resamples,
                seed=ctx.config.seed,
                level=e.level,
            )
            differences[how] = {"difference": gap.value, "low": gap.low, "high": gap.high}
    accuracy = {
        split: {how: {name: float(np.mean(v)) for name, v in found.items()} for how, found in by_how.items()}
        for split, by_how in right.items()
    }
    return {"configured": own, "accuracy": accuracy, "differences": differences}


def _has_long_choices(ctx: RunContext) -> bool:
    return any(bool((np.diff(ctx.splits[s].choice_token_offsets) > 1).any()) for s in ctx.test_splits)
