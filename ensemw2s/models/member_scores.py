"""Teacher-forced scores by members that share a base: every batch is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ensemw2s.models.adapters import SharedBase
from ensemw2s.models.scoring import (
    Method,
    ScoreRequest,
    Scores,
    check_numbers,
    plan_rows,
    tails,
)


def score_together(
    shared: SharedBase,
    requests: Sequence[ScoreRequest],
    *,
    batch_tokens: int = 4096,
    method: Method = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """What :func:`ensemw2s.models.scoring.score` gives for each member of a base, in their order.

    A batch holds each row once for every member, so that it takes a T-th of ``batch_tokens`` texts; arguments and errors are
    those of ``score``.
    """
    model, n = shared.every(), shared.n_members
    rows, offsets = plan_rows(model, requests, method, max(1, batch_tokens // n), n)
    logprobs = np.empty((n, int(offsets[-1])), dtype=np.float32)
    hits = np.empty(logprobs.shape, dtype=np.bool_)
    with torch.inference_mode():
        for tail in tails(model, rows, max(1, batch_tokens // n), progress, copies=n):
            logprobs[tail.copy, tail.output], hits[tail.copy, tail.output] = tail.scores()
    check_numbers(logprobs)
    forwarded = sum(r.length for r in rows)
    return [Scores(own, hit, offsets, forwarded) for own, hit in zip(logprobs, hits, strict=True)]
