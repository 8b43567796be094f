"""Passes over long arrays, a part that fits into the processor's cache at a time.

A whole-array expression reads and writes memory once per operation, and takes new memory for each; here every weight is read
once a pass, whatever is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ensemw2s.core._checks import BoolArray, FloatArray, check_weights

#: Entries of a part: with its buffers a quarter of a megabyte.
PART = 2**14


def parts(size: int) -> Iterator[slice]:
    """Consecutive slices that cover ``size`` entries."""
    yield from (slice(begin, begin + PART) for begin in range(0, size, PART))


def split_mass(values: FloatArray, flags: BoolArray) -> tuple[float, float]:
    """Sum of the flagged weights and sum of the others: (n,) float64, (n,) bool.

    Each is a sum of its own: as a difference from the total a small one would lose its digits.

    Raises:
        ValueError: weights that are negative, not finite or all 0.
    """
    buffer = np.empty(min(PART, values.size))
    flagged, others = [], []
    smallest = math.inf
    # What is not finite is refused below.
    with np.errstate(invalid="ignore"):
        for part in parts(values.size):
            own = values[part]
            smallest = min(smallest, float(own.min()))
            chosen = buffer[: own.size]
            chosen[...] = flags[part]
            chosen *= own
            flagged.append(float(chosen.sum()))
            np.subtract(own, chosen, out=chosen)
            others.append(float(chosen.sum()))
    one, other = _total(flagged), _total(others)
    check_weights(one + other, smallest)
    return one, other


def scale_split(
    values: FloatArray, flags: BoolArray, flagged: tuple[float, float], others: tuple[float, float]
) -> FloatArray:
    """New values: the flagged ones scaled from the first of their two sums to the second, and so the others.

    Args:
        values: (n,) float64, not negative.
        flags: (n,) bool.
        flagged, others: (sum now, sum to be), the first above 0.
    """
    with np.errstate(over="ignore"):
        one, zero = (float(np.float64(to) / now) for now, to in (flagged, others))
    if not (math.isfinite(one) and math.isfinite(zero)):
        # The values are so small that 1 divided by them overflows.
        now, to = (np.where(flags, f, o) for f, o in zip(flagged, others, strict=True))
        return np.asarray(values / now * to, dtype=np.float64)
    # base + step * chosen is exact to rounding only when the smaller scale is the base.
    chosen_flag, base, step = (flags, zero, one - zero) if one >= zero else (~flags, one, zero - one)
    scaled = np.empty_like(values)
    buffer = np.empty(min(PART, values.size))
    for part in parts(values.size):
        own = values[part]
        scale = buffer[: own.size]
        scale[...] = chosen_flag[part]
        scale *= step
        scale += base
        np.multiply(own, scale, out=scaled[part])
    return scaled


def above(values: FloatArray, bound: float) -> tuple[int, float]:
    """How many of the values, (n,) float64, exceed the bound, and the sum of the others."""
    buffer = np.empty(min(PART, values.size))
    count, others = 0, []
    for part in parts(values.size):
        own = values[part]
        below = own <= bound
        count += own.size - int(np.count_nonzero(below))
        kept = buffer[: own.size]
        kept[...] = below
        kept *= own
        others.append(float(kept.sum()))
    return count, math.fsum(others)


def scale_and_clip(values: FloatArray, scale: float, largest: float) -> FloatArray:
    """min(values * scale, largest), (n,) float64."""
    clipped = np.empty_like(values)
    for part in parts(values.size):
        np.multiply(values[part], scale, out=clipped[part])
        np.minimum(clipped[part], largest, out=clipped[part])
    return clipped


def _total(sums: list[float]) -> float:
    # Infinities of both signs are an error of fsum, and NaN here.
    return math.fsum(sums) if all(map(math.isfinite, sums)) else sum(sums)
