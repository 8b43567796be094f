"""One model in place of the vote: the average of the members' weights, each as heavy as its vote.

Averages of fine-tuned weights of one pretrained model: Wortsman et al., "Model soups", 2022 (arXiv 2203.05482), section 2. An
adapter is added into its base first, so that the average of adapters is that of what they change.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ensemw2s.engine.answers import Ensemble, ensure_model_answers
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.engine.votes import voting_splits

MERGED = "member-merged"
STAGE = "merged"


def voting_ensemble(ctx: RunContext, ensemble: Ensemble, selected: int) -> Ensemble:
    """Who speaks for the selected members: they themselves, or the one model that they are merged into."""
    voters = ensemble.first(selected)
    if ctx.config.vote.combine == "predictions" or selected == 1:
        return voters
    ref = ModelRef("weak", voters.refs[0].index, ctx.run_dir / merged_path())
    return Ensemble((MERGED,), (ref,), np.ones(1))


def merged_path() -> Path:
    """Where the merged model lies in the run directory."""
    return Path("members") / "merged"


def ensure_merged(ctx: RunContext, pool: SupervisorPool, ensemble: Ensemble, selected: int) -> None:
    """Commit the merged model and what its answers need, where the members are merged and that is not done."""
    speaker = voting_ensemble(ctx, ensemble, selected)
    if speaker.systems != (MERGED,):
        return
    if ctx.store.done(STAGE) is None:
        voters = ensemble.first(selected)
        output = ctx.store.begin(STAGE) / merged_path()
        # What a killed attempt left there.
        shutil.rmtree(output, ignore_errors=True)
        # A uniform vote has one for each, and so has the plain average.
        alphas = np.ones_like(voters.alphas) if ctx.config.vote.label_model == "uniform" else voters.alphas
        shares = (alphas / alphas.sum()).tolist()
        pool.submit(0, "merge_members", list(voters.refs), shares, output).result()
        ctx.commit(STAGE, {"members": list(voters.systems), "shares": shares})
    if ctx.multiple_choice:
        ensure_model_answers(ctx, pool, speaker.refs[0], MERGED, voting_splits(ctx))
