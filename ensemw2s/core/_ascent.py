"""Steps that are halved until what they climb does not fall."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ensemw2s.core._checks import FloatArray

_HALVINGS = 50

# A step this small, relative to the parameters, moves the objective by less than its rounding.
_NEGLIGIBLE = 1e-9


def climb(parts: Callable[[FloatArray], FloatArray], start: FloatArray, step: FloatArray) -> FloatArray:
    """start + scale * step, one scale in {1, 1/2, 1/4, ..., 0} for each part of the objective.

    Args:
        parts: (..., n) parameters -> (n,), the parts of an objective that is their sum; part j depends on
            parameters[..., j] alone.
        start, step: (..., n) each.

    Returns:
        (..., n) parameters no part of which is below that of the start.
    """
    before = parts(start)
    scale = np.ones_like(before)
    length = (np.abs(step) / (1.0 + np.abs(start))).reshape(-1, before.size).max(axis=0)
    for _ in range(_HALVINGS):
        # A value that is not a number counts as worse, too.
        worse = ~(parts(start + scale * step) >= before)
        if not worse.any():
            break
        scale = np.where(worse, scale / 2.0, scale)
        scale = np.where(worse & (scale * length <= _NEGLIGIBLE), 0.0, scale)
    else:
        scale = np.where(worse, 0.0, scale)
    moved: FloatArray = start + scale * step
    return moved
