"""Rows of unequal length in flat arrays: softmax, sums and places, over the choices of each question."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import FloatArray, IntArray


def row_log_softmax(scores: FloatArray, offsets: IntArray) -> FloatArray:
    """Log-softmax within each row, (..., N) -> (..., N).

    -inf is allowed; a row of nothing else is a tie of all its entries.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    best = np.repeat(np.maximum.reduceat(scores, starts, axis=-1), lengths, axis=-1)
    shifted: FloatArray = np.subtract(scores, best, out=np.zeros_like(scores), where=best > -np.inf)
    total = np.add.reduceat(np.exp(shifted), starts, axis=-1)
    shifted -= np.repeat(np.log(total), lengths, axis=-1)
    return shifted


def row_logsumexp(scores: FloatArray, offsets: IntArray) -> FloatArray:
    """Log of the sum of exponentials of each row, (..., N) -> (..., n); every row needs a finite entry."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    best = np.maximum.reduceat(scores, starts, axis=-1)
    gap = scores - np.repeat(best, lengths, axis=-1)
    total: FloatArray = best + np.log(np.add.reduceat(np.exp(gap), starts, axis=-1))
    return total


def row_argmax(values: FloatArray, offsets: IntArray) -> IntArray:
    """Place within its row of each row's largest entry, ties to the lowest, (..., N) -> (..., n) int64."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    best = np.repeat(np.maximum.reduceat(values, starts, axis=-1), lengths, axis=-1)
    place = np.where(values == best, np.arange(values.shape[-1], dtype=np.int64), values.shape[-1])
    found: IntArray = np.minimum.reduceat(place, starts, axis=-1) - starts
    return found


def as_places(places: ArrayLike, offsets: IntArray, name: str = "truth") -> IntArray:
    """(..., n) integers, each a place within its row.

    Raises:
        ValueError: another shape or type, or a place outside its row.
    """
    array = np.asarray(places)
    lengths = np.diff(offsets)
    if array.shape[-1:] != lengths.shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must hold one integer for each of {lengths.size} questions, "
            f"got shape {array.shape}, dtype {array.dtype}"
        )
    outside = (array < 0) | (array >= lengths)
    if outside.any():
        where = int(np.argwhere(outside)[0][-1])
        raise ValueError(
            f"{name} of question {where} must lie in 0..{lengths[where] - 1}, got {array[outside].flat[0]}"
        )
    return array.astype(np.int64, copy=False)
