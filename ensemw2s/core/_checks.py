"""Argument checks that the numeric modules share; each says what came and what is allowed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def as_weights(weights: ArrayLike, name: str = "weights") -> FloatArray:
    """(n,) float64, n >= 1, finite, not negative, with a positive sum (not necessarily 1)."""
    array = as_vector(weights, name)
    check_weights(float(array.sum()), float(array.min()), name)
    return array


def as_vector(values: ArrayLike, name: str) -> FloatArray:
    """(n,) float64, n >= 1; what the entries are is not looked at."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {array.shape}")
    return array


def check_weights(total: float, smallest: float, name: str = "weights") -> None:
    """The sum and the minimum of a vector tell whether it can be weights; NaN anywhere makes the sum NaN."""
    if not (math.isfinite(total) and total > 0.0 and smallest >= 0.0):
        raise ValueError(
            f"{name} must be finite, not negative and not all 0, got minimum {smallest} and sum {total}"
        )


def as_flags(flags: ArrayLike, size: int | None = None, name: str = "wrong") -> BoolArray:
    """(n,) bool from booleans or from the numbers 0 and 1."""
    array = np.asarray(flags)
    if array.ndim != 1 or array.size == 0 or (size is not None and array.size != size):
        expected = "a non-empty vector" if size is None else f"a vector of length {size}"
        raise ValueError(f"{name} must be {expected}, got shape {array.shape}")
    if array.dtype == np.bool_:
        return array
    if not np.all((array == 0) | (array == 1)):
        raise ValueError(f"{name} must hold booleans or 0 and 1, got other values of dtype {array.dtype}")
    return array.astype(np.bool_)


def as_offsets(offsets: ArrayLike, size: int | None = None, name: str = "offsets") -> IntArray:
    """(n_rows + 1,) int64: starts at 0, strictly increasing (no empty row), ends at `size` if given."""
    array = np.asarray(offsets)
    if array.ndim != 1 or array.size < 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be an integer vector of at least 2 entries, "
            f"got shape {array.shape}, dtype {array.dtype}"
        )
    array = array.astype(np.int64, copy=False)
    if array[0] != 0:
        raise ValueError(f"{name} must start at 0, got {array[0]}")
    lengths = np.diff(array)
    if lengths.min() <= 0:
        row = int(np.argmax(lengths <= 0))
        raise ValueError(f"{name} must leave no row empty, but row {row} has length {lengths[row]}")
    if size is not None and array[-1] != size:
        raise ValueError(f"{name} must end at the number of entries, {size}, got {array[-1]}")
    return array


def as_alphas(alphas: ArrayLike, n_members: int) -> FloatArray:
    """(T,) float64 voting weights: finite, not negative, not all 0."""
    array = as_weights(alphas, "alphas")
    if array.size != n_members:
        raise ValueError(f"alphas must have one entry per member, {n_members}, got {array.size}")
    return array


def check_unit_interval(value: float, name: str) -> float:
    """A number in [0, 1]; NaN is refused."""
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return number


def check_choice(value: str, allowed: tuple[str, ...], name: str) -> str:
    """One of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value
