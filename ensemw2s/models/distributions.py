"""Teacher-forced next-token distributions at the tokens of given texts: the most probable tokens, or given ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ensemw2s.errors import ModelError
from ensemw2s.models.scoring import ScoreRequest, all_tails
from ensemw2s.models.topk import largest


def top_tokens(
    model: Any,
    requests: Sequence[ScoreRequest],
    k: int,
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The k most probable tokens at every continuation token, ids (n_tokens, k) int32, the most probable first.

    Raises:
        ValueError, ModelError: as :func:`ensemw2s.models.scoring.score`.
    """
    n_tokens = sum(len(c) for r in requests for c in r.continuations)
    ids = np.empty((n_tokens, k), dtype=np.int32)
    with torch.inference_mode():
        for tail in all_tails(model, requests, batch_tokens=batch_tokens, progress=progress):
            ids[tail.output] = largest(tail.at_targets(), k)[1].int().cpu().numpy()
    return ids


def probabilities_of(
    model: Any,
    requests: Sequence[ScoreRequest],
    ids: np.ndarray,
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Probabilities of given tokens at every continuation token.

    Args:
        model: as for :func:`ensemw2s.models.scoring.score`.
        requests: the texts.
        ids: (n_tokens, m) token ids; -1 pads.
        batch_tokens: most tokens of one forward pass.
        progress: called after each batch with the rows done and the rows in all.

    Returns:
        (n_tokens, m) float32, 0 where padded.

    Raises:
        ValueError, ModelError: as :func:`ensemw2s.models.scoring.score`.
    """
    probs = np.empty(ids.shape, dtype=np.float32)
    with torch.inference_mode():
        for tail in all_tails(model, requests, batch_tokens=batch_tokens, progress=progress):
            rows = tail.at_targets()
            wanted = torch.from_numpy(ids[tail.output].astype(np.int64)).to(rows.device)
            logs = rows.gather(-1, wanted.clamp(min=0)) - rows.logsumexp(-1, keepdim=True)
            probs[tail.output] = torch.where(wanted >= 0, logs.exp(), 0.0).cpu().numpy()
    if np.isnan(probs).any():
        raise ModelError("the model's probabilities are not numbers (NaN): its training diverged")
    return probs
