"""From a rating to an easy and a hard side."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import BoolArray


def easy_hard_split(
    difficulty: ArrayLike, *, quantile: float | None = None, threshold: float | None = None
) -> tuple[BoolArray, float]:
    """Which samples are easy, by the rule of `data.split` (easy_quantile, easy_threshold).

    Args:
        difficulty: (n,) finite, larger is harder.
        quantile: the easiest share is easy, in (0, 1); the value at the quantile is easy itself, and so is all that
            ties with it. Give this or `threshold`.
        threshold: easy when the difficulty is at most this.

    Returns:
        easy (n,) bool, and the threshold: easy is difficulty <= threshold.

    Raises:
        ValueError: NaN, both or none of quantile and threshold, a quantile outside (0, 1), or an empty side.
    """
    values = np.asarray(difficulty, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"difficulty must be a non-empty vector of finite numbers, got shape {values.shape}")
    if (quantile is None) == (threshold is None):
        raise ValueError(
            f"give exactly one of quantile and threshold, got quantile={quantile}, threshold={threshold}"
        )
    if quantile is not None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        # 0.07 * 100 is a little more than 7 in binary, which must not become the eighth value.
        rank = math.ceil(round(quantile * values.size, 9))
        threshold = float(np.sort(values)[max(0, rank - 1)])
    cut = math.nan if threshold is None else float(threshold)
    easy = values <= cut
    if easy.all() or not easy.any():
        side = "easy" if easy.all() else "hard"
        raise ValueError(
            f"all {values.size} samples are {side} at difficulty <= {cut:g} (they reach from {values.min():g} to "
            f"{values.max():g}): choose another quantile or threshold"
        )
    return easy, cut
