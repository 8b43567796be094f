"""Questions of like difficulty taken together, to show accuracy as a function of difficulty."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import IntArray


def difficulty_bins(difficulty: ArrayLike, n_bins: int = 5) -> IntArray:
    """Bin of each question, (n,) int64 from 0 (easiest), about equally many in each.

    At most `n_bins` different values are a bin each. Otherwise a question goes by the middle of its value's ranks, so that
    questions that tie are never divided; a bin may then be empty and is left out.

    Args:
        difficulty: (n,) finite, larger is harder.
        n_bins: most bins, at least 1.

    Raises:
        ValueError: an empty or not finite vector, or n_bins below 1.
    """
    values = np.asarray(difficulty, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"difficulty must be a non-empty vector of finite numbers, got shape {values.shape}")
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    distinct, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) <= n_bins:
        return place.astype(np.int64)
    middle = np.cumsum(counts) - counts / 2.0
    wanted = np.minimum((middle * n_bins / values.size).astype(np.int64), n_bins - 1)
    return np.unique(wanted, return_inverse=True)[1][place].astype(np.int64)
