"""What other label models (``vote.label_model``, ``vote.calibrate``) would have answered, from the stored scores; no model runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemw2s.core.label_models import LABEL_MODELS
from ensemw2s.core.metrics import paired_bootstrap
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.votes import Known, VoteRule, read_scores, vote

#: Ways to vote that are compared. A temperature changes no member's own choice: for those that count choices it moves ties alone.
RULES = tuple(
    VoteRule(name, calibrate)
    for name in LABEL_MODELS
    for calibrate in (
        (False, True) if name in ("weighted", "uniform", "geometric", "em_weights") else (False,)
    )
)
#: EM over a difficulty a question takes most of a millisecond for each, which is too long to be done unasked for more.
LARGEST_GLAD = 10_000


def other_votes(ctx: RunContext, voters: Ensemble) -> list[dict[str, Any]]:
    """The part ``diagnostics.votes`` of results.json; empty for free answers and where one model speaks.

    Args:
        ctx: the run.
        voters: the members that vote.

    Returns:
        For each way to vote its ``label_model``, ``calibrate``, whether it is the run's own (``configured``), and by split the
        ``accuracy`` with the ``difference`` from the run's own vote and its paired interval (``low``, ``high``); splits with more
        than ``LARGEST_GLAD`` questions have none of GLAD. Where a label model is fitted to the truth of easy_val, its accuracy
        there is that of the fit.
    """
    if not ctx.multiple_choice or len(voters.systems) == 1:
        return []
    own = VoteRule.of(ctx.config.vote)
    rules = RULES if own in RULES else (own, *RULES)
    members = list(voters.systems)
    found: dict[VoteRule, dict[str, dict[str, float]]] = {rule: {} for rule in rules}
    known = Known.of(ctx, members, voters.alphas, ctx.config.vote.choice_score)
    e = ctx.config.evaluation
    for split in ("easy_val", "hard_train", *ctx.test_splits):
        data = ctx.splits[split]
        scores = np.stack([read_scores(ctx, system, split) for system in members])
        right = {
            rule: (
                vote(ctx, members, voters.alphas, data, scores, rule=rule, known=known).index == data.answers
            ).astype(float)
            for rule in rules
            if rule == own or rule.label_model != "glad" or len(data.samples) <= LARGEST_GLAD
        }
        for rule, values in right.items():
            gap = paired_bootstrap(
                values, right[own], n_resamples=e.resamples, seed=ctx.config.seed, level=e.level
            )
            found[rule][split] = {
                "accuracy": float(values.mean()),
                "difference": gap.value,
                "low": gap.low,
                "high": gap.high,
            }
    return [
        {
            "label_model": rule.label_model,
            "calibrate": rule.calibrate,
            "configured": rule == own,
            "splits": by_split,
        }
        for rule, by_split in found.items()
    ]
