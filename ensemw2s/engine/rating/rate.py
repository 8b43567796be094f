"""From the answers of models to ratings."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemw2s.core.difficulty import fit_irt, out_of_fold_rating
from ensemw2s.data.samples import Sample
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.rating.folds import answer_folds
from ensemw2s.engine.rating.members import rate_by_members
from ensemw2s.engine.rating.options import RatingOptions, check_irt
from ensemw2s.engine.rating.output import Rating
from ensemw2s.engine.rating.plan import FoldPlan, hash_of
from ensemw2s.engine.rating.responses import read_responses


def by_folds(ctx: RunContext, pool: SupervisorPool, plan: FoldPlan) -> Rating:
    """Out-of-fold confidence, or item response theory over the folds' models.

    Args:
        ctx: the work folder, with the samples committed.
        pool: supervisors.
        plan: what is trained and rated.
    """
    answers = answer_folds(ctx, pool, plan)
    repeats = plan.options.n_repeats
    models = [model.display_name for model in plan.config.weak.models]
    details = {"folds": plan.options.n_folds, "seed": plan.config.seed, "models": models, "repeats": repeats}
    if plan.options.method == "irt":
        names = [f"{name} #{r + 1}" for name in models for r in range(repeats)]
        difficulty, fitted = _irt(answers.right.astype(np.float64), names, plan.options.irt or "auto")
        details |= fitted
    else:
        difficulty = out_of_fold_rating(plan.ids, answers.parts, groups=plan.groups)
    return Rating(plan.options.method, difficulty, plan.identity_hash, plan.fold, details)


def by_members(ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, samples: list[Sample]) -> Rating:
    """Disagreement of the members of the run `ctx`, which :func:`rating_members` gave."""
    difficulty = rate_by_members(ctx, pool, ensemble, samples)
    members = list(ensemble.systems)
    config = hash_of([ctx.store.identity(), members, ctx.config.vote.choice_score])
    return Rating("members", difficulty, config, None, {"run": ctx.config.name, "members": members})


def by_responses(options: RatingOptions, samples: list[Sample]) -> Rating:
    """Item response theory over a table of answers."""
    if options.responses is None:
        raise ValueError("there is no table of responses")
    responses, names = read_responses(options.responses, samples)
    check_irt(len(names), options, "give more columns of models")
    difficulty, details = _irt(responses, names, options.irt or "auto")
    # NaN is no JSON, and equals nothing.
    plain = np.where(np.isnan(responses), -1.0, responses).tolist()
    return Rating("irt", difficulty, hash_of([names, plain, options.irt]), None, details)


def _irt(responses: np.ndarray, names: list[str], model: Any) -> tuple[np.ndarray, dict[str, Any]]:
    fit = fit_irt(responses, model)
    abilities = {name: round(float(a), 6) for name, a in zip(names, fit.ability, strict=True)}
    return fit.difficulty, {"irt": fit.model, "converged": fit.converged, "abilities": abilities}
