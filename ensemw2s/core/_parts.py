"""Passes over long arrays, a part that fits into the processor's cache at a time.

A whole-array expression reads and writes memory once per operation, and takes new memory for each; here every weight is read
once a pass, whatever is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray, check_weights

#: Entries of a part: with its buffers a quarter of a megabyte.
PART = 2**14


def parts(size: int, part: int = PART) -> Iterator[slice]:
    """Consecutive slices of ``part`` entries, the last of which may be shorter, that cover ``size`` entries."""
    yield from (slice(begin, min(begin + part, size)) for begin in range(0, size, part))


def row_parts(bounds: IntArray) -> Iterator[slice]:
    """Consecutive slices of rows whose entries, which begin at `bounds`, (n + 1,), are about as many as a part's."""
    n_rows = bounds.size - 1
    yield from parts(n_rows, max(1, PART * n_rows // max(1, int(bounds[-1]))))


class Sliced(Protocol):
    """What gives the entries of a slice as an array."""

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...


def row_sums(values: Sliced, bounds: IntArray) -> FloatArray:
    """(n,) float64: the sum of each row's values, whose entries begin at `bounds`, (n + 1,)."""
    sums = np.empty(bounds.size - 1)
    for part in row_parts(bounds):
        begin, end = int(bounds[part.start]), int(bounds[part.stop])
        sums[part] = np.add.reduceat(values[begin:end], bounds[part] - begin, dtype=np.float64)
    return sums


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


def above(values: FloatArray, bound: float, counts: IntArray | None = None) -> tuple[int, float]:
    """How many of the values, (n,) float64, exceed the bound, and the sum of the others; `counts` says how often each occurs."""
    if counts is not None:
        over = values > bound
        return int(counts[over].sum()), math.fsum(values[~over] * counts[~over])
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


def cap(weights: FloatArray, limit: float, counts: IntArray | None = None) -> FloatArray:
    """Water-filling: the largest at the limit, the rest scaled up together, as few at the limit as will do.

    A pass caps what the passes before pushed over the limit; a unit that was capped stays so, because the
    scale of the rest only grows. Sorting would need one pass, but takes longer than the few that there are.

    Args:
        weights: (n,) float64, sum to 1 (with counts: their products do).
        limit: largest weight, at least 1 divided by the number of units.
        counts: (n,) how many units have each weight; None: one.
    """
    n_units = weights.size if counts is None else int(counts.sum())
    scale, n_capped = 1.0, 0
    n_over, rest = above(weights, limit, counts)
    while n_over > n_capped:
        n_capped, left = n_over, 1.0 - limit * n_over
        if not rest > 0.0 or math.isinf(left / rest):
            # The others have weight 0, or next to it, which gives no proportion: they share evenly.
            even = left / max(n_units - n_capped, 1)
            return np.minimum(np.where(weights > limit / scale, limit, even), limit)
        # Rounding may leave less than the others have, down to nothing.
        scale = max(scale, left / rest)
        n_over, rest = above(weights, limit / scale, counts)
    return scale_and_clip(weights, scale, limit)


def check_step(alpha: float, max_weight: float | None) -> None:
    """Whether weights can be multiplied by exp(alpha) and capped at `max_weight` times the uniform weight.

    Raises:
        ValueError: alpha is not finite, or max_weight below 1.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if max_weight is not None and not max_weight >= 1.0:
        raise ValueError(
            f"max_weight, a multiple of the uniform weight, must be at least 1, got {max_weight}"
        )


def shares_after(wrong_mass: float, right_mass: float, alpha: float) -> tuple[float, float]:
    """Shares of the weight that wrong and right units have after the wrong ones were multiplied by exp(alpha).

    Only the split of the mass between them changes; its log-odds move by alpha. Going through the two masses, both above 0,
    keeps a large alpha from overflowing and costs no logarithm per unit.
    """
    log_odds = math.log(wrong_mass) - math.log(right_mass) + alpha
    small = math.exp(-abs(log_odds)) / (1.0 + math.exp(-abs(log_odds)))
    return (1.0 - small, small) if log_odds >= 0 else (small, 1.0 - small)


def _total(sums: list[float]) -> float:
    # Infinities of both signs are an error of fsum, and NaN here.
    return math.fsum(sums) if all(map(math.isfinite, sums)) else sum(sums)
