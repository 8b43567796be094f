"""Using a finished run's ensemble on new questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ensemw2s.data.samples import Sample
from ensemw2s.engine.answers import Ensemble, voted_answers
from ensemw2s.engine.boosting import MemberRecord
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.generation import Generated
from ensemw2s.engine.merging import MERGED, STAGE, voting_ensemble
from ensemw2s.engine.pipeline import kept_ensemble
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.engine.together import share_bases
from ensemw2s.engine.votes import answer_choices, ask_members, vote
from ensemw2s.errors import ArtifactError


def selected_ensemble(ctx: RunContext) -> Ensemble:
    """The members that vote in a run, as chosen on easy_val.

    Raises:
        ArtifactError: the run has not got that far, or a member is damaged.
    """
    selected = int(ctx.store.require("select").info["selected"])
    attempts = [name for name in ctx.store.stages() if name.startswith("member-")]
    # A member that is not whole is an error here: without it the others would give other labels.
    records = [MemberRecord(**ctx.store.require(name).info["record"]) for name in attempts]
    records.sort(key=lambda record: record.attempt)
    ensemble = kept_ensemble(ctx, records)
    if len(ensemble.refs) < selected:
        raise ArtifactError(
            f"{ctx.run_dir} has {len(ensemble.refs)} of the {selected} members that vote: give its `ensemw2s run` command again"
        )
    speaker = voting_ensemble(ctx, ensemble, selected)
    if speaker.systems == (MERGED,):
        ctx.store.require(STAGE)
    return speaker


def label_choices(
    ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, samples: list[Sample]
) -> pa.Table:
    """Label multiple-choice questions.

    Returns:
        one row a sample: id, question, choices, label (index), label_text, confidence, votes (each member's own index).
    """
    data = ctx.splits.encode(samples)
    logprobs = ask_members(share_bases(pool, ensemble.refs), ensemble.refs, data, "new questions")
    voted = vote(ctx, list(ensemble.systems), ensemble.alphas, data, logprobs)
    own = np.stack([answer_choices(ctx, data, member).index for member in logprobs])
    columns: dict[str, Any] = {
        "id": [s.id for s in samples],
        "question": [s.question for s in samples],
        "choices": [list(s.choices or ()) for s in samples],
        "label": pa.array(voted.index, pa.int32()),
        "label_text": [s.choices[int(i)] for s, i in zip(samples, voted.index, strict=True) if s.choices],
        "confidence": voted.confidence,
        "votes": pa.array(own.T.tolist(), pa.list_(pa.int32())),
    }
    return pa.table(columns)


def generate_answers(
    ctx: RunContext,
    pool: SupervisorPool,
    ensemble: Ensemble,
    data: EncodedSplit,
    *,
    max_new_tokens: int | None = None,
) -> list[Generated]:
    """Voted answers to encoded questions."""

    def progress(done: int, total: int) -> None:
        ctx.report(ProgressEvent("answers", done, total))

    return voted_answers(ctx, pool, ensemble, data, progress, max_new_tokens=max_new_tokens)[0]


def label_free(ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, samples: list[Sample]) -> pa.Table:
    """Label free-form questions.

    Returns:
        one row a sample: id, question, label_text, confidence, tokens, member_tokens (each member's own likeliest).
    """
    data = ctx.splits.encode(samples)
    answers = generate_answers(ctx, pool, ensemble, data)
    return pa.table(
        {
            "id": [s.id for s in samples],
            "question": [s.question for s in samples],
            "label_text": [a.text for a in answers],
            "confidence": pa.array([a.confidence for a in answers], pa.float64()),
            "tokens": pa.array([a.tokens for a in answers], pa.list_(pa.int32())),
            "member_tokens": pa.array([a.member_tokens for a in answers], pa.list_(pa.list_(pa.int32()))),
        }
    )
