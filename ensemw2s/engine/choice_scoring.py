"""What another score of a choice (``vote.choice_score``) would have given, from the stored log-probabilities; no model runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemw2s.core.metrics import paired_bootstrap
from ensemw2s.core.voting import SCORE_HOWS, ScoreHow
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.votes import answer_choices, read_scores, vote

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

    def right_answers(split: str) -> dict[ScoreHow, dict[str, np.ndarray]]:
        # Students are never asked the questions that they learn from.
        asked = {n: files for n, files in systems.items() if split != TAUGHT or n == "weak_single"}
        alone = {n: (ctx.side_splits(f)[split], read_scores(ctx, f, split)) for n, f in asked.items()}
        members, data = list(voters.systems), ctx.splits[split]
        voted = np.stack([read_scores(ctx, system, split) for system in members])
        right: dict[ScoreHow, dict[str, np.ndarray]] = {}
        for how in SCORE_HOWS:
            chosen = {n: answer_choices(ctx, own, logprobs, how) for n, (own, logprobs) in alone.items()}
            chosen["weak_ensemble"] = vote(ctx, members, voters.alphas, data, voted, how)
            right[how] = {n: answers.index == data.answers for n, answers in chosen.items()}
        return right

    right = {split: right_answers(split) for split in (CHOOSING, *ctx.test_splits, TAUGHT)}
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
