"""Difficulty by how much the members of a finished run disagree; needs no truth."""

from __future__ import annotations

import numpy as np

from ensemw2s.core.difficulty import disagreement_rating
from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.core.label_models import ChoiceVotes
from ensemw2s.data.samples import Sample, question_key
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.boosting import load_records
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.labeling import generate_answers
from ensemw2s.engine.pipeline import kept_ensemble
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.votes import ask_members
from ensemw2s.errors import ConfigError, DataError


def rating_members(ctx: RunContext, samples: list[Sample]) -> Ensemble:
    """The kept members of a run, when they may rate these samples.

    Raises:
        ConfigError: there are fewer than two.
        DataError: they were trained on one of the questions.
        ArtifactError: the run is not that far.
    """
    ctx.store.require("splits")
    ensemble = kept_ensemble(ctx, load_records(ctx))
    if len(ensemble.refs) < 2:
        raise ConfigError(
            f"members that disagree are two or more, and {ctx.run_dir} has {len(ensemble.refs)}: choose a run with more boosting.rounds"
        )
    trained_on = {question_key(s) for s in ctx.splits["easy_train"].samples}
    leaked = [s.id for s in samples if question_key(s) in trained_on]
    if leaked:
        raise DataError(
            f"leak: the members were trained on {len(leaked)} of the {len(samples)} questions (first: {leaked[0]!r}): rate others, "
            f"such as --input {ctx.run_dir / 'splits' / 'hard_train.parquet'}"
        )
    return ensemble


def rate_by_members(
    ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, samples: list[Sample]
) -> np.ndarray:
    """(n,) difficulty in [0, 1]: the Jensen-Shannon divergence of the members' distributions over the choices; for free
    answers the share of the pairs of members whose generated answers differ.
    """
    data = ctx.splits.encode(samples)
    if not data.multiple_choice:
        generated = []
        for system, ref in zip(ensemble.systems, ensemble.refs, strict=True):
            alone = Ensemble((system,), (ref,), np.ones(1))
            generated.append([normalize_answer(a.text) for a in generate_answers(ctx, pool, alone, data)])
        return differing_pairs(generated)
    votes = ChoiceVotes.from_token_logprobs(
        ask_members(pool, ensemble.refs, data, "questions to rate"),
        data.choice_token_offsets,
        data.choice_offsets,
        ensemble.alphas,
        ctx.config.vote.choice_score,
        data.choice_bytes,
    )
    return disagreement_rating(votes)


def differing_pairs(answers: list[list[str]]) -> np.ndarray:
    """(n,) share of the pairs of members whose answers differ; `answers` has a list of n texts for each member."""
    n_members = len(answers)
    found = np.array(answers, dtype=object)
    same = (found[:, None, :] == found[None, :, :]).sum(axis=(0, 1)).astype(np.float64) - n_members
    share: np.ndarray = 1.0 - same / (n_members * (n_members - 1))
    return share
