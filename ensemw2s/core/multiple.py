"""Many comparisons at once: p-values that stay honest."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import FloatArray


def holm(p_values: ArrayLike) -> FloatArray:
    """P-values adjusted by Holm's step-down method, (m,) in the order given.

    With p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)) (Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979). Rejecting where the
    adjusted value is at most a level keeps the chance of any false rejection at that level, whatever the dependence.

    Args:
        p_values: (m,) in [0, 1]; the comparisons of one table, all of them, not the ones that look good.

    Raises:
        ValueError: empty, NaN or outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"p_values must be a non-empty vector, got shape {values.shape}")
    if not (values.min() >= 0.0 and values.max() <= 1.0):
        raise ValueError(f"p_values must lie in [0, 1], got {values.min()} to {values.max()}")
    order = np.argsort(values, kind="stable")
    scaled = np.minimum(values[order] * np.arange(values.size, 0, -1), 1.0)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted
