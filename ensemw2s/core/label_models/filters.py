"""Which pseudo-labels a student is taught: the most confident ones, or those that the members agree on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import BoolArray, FloatArray
from ensemw2s.core._ragged import as_places
from ensemw2s.core.label_models.votes import ChoiceVotes


def agreement(votes: ChoiceVotes, choice: ArrayLike) -> FloatArray:
    """(n,) share of the members whose own choice is the label: k/T, so it has few distinct values.

    Args:
        votes: the members' votes.
        choice: (n,) labels.

    Raises:
        ValueError: labels that are not one choice of each question.
    """
    labels = as_places(choice, votes.offsets, "choice")
    shares: FloatArray = (votes.answers == labels).mean(axis=0)
    return shares


def keep_best(
    values: ArrayLike,
    *,
    share: float | None = None,
    threshold: float | None = None,
    then: ArrayLike | None = None,
    ids: Sequence[str] | None = None,
) -> BoolArray:
    """Mask of the samples with the largest values (a confidence, or `agreement`).

    Args:
        values: (n,) finite.
        share: keep ceil(share * n) samples, in (0, 1]. Give this or `threshold`.
        threshold: keep those with at least this value; may keep none.
        then: (n,) what decides among equal values at the cut, for example the confidence where `values` is the
            agreement.
        ids: (n,) sample ids; samples still equal are ordered by the SHA-256 of the id, so that the choice does not
            depend on their order, which may itself be one of difficulty. Without ids the earlier samples are kept.

    Returns:
        (n,) bool.

    Raises:
        ValueError: shapes that do not fit, NaN, both or none of share and threshold, share outside (0, 1].
    """
    array = _as_values(values, "values")
    if (share is None) == (threshold is None):
        raise ValueError(f"give exactly one of share and threshold, got share={share}, threshold={threshold}")
    if threshold is not None:
        if math.isnan(threshold):
            raise ValueError("threshold must be a number, got nan")
        kept: BoolArray = array >= threshold
        return kept
    if share is None or not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    second = np.zeros(array.size) if then is None else _as_values(then, "then", array.size)
    if ids is not None and len(ids) != array.size:
        raise ValueError(f"ids must have one entry a sample, {array.size}, got {len(ids)}")
    keys = [""] * array.size if ids is None else [hashlib.sha256(i.encode()).hexdigest() for i in ids]
    # 0.07 * 100 is a little more than 7 in binary, which must not become 8 samples.
    count = math.ceil(round(share * array.size, 9))
    order = sorted(range(array.size), key=lambda i: (-array[i], -second[i], keys[i]))
    mask = np.zeros(array.size, dtype=np.bool_)
    mask[order[:count]] = True
    return mask


def _as_values(values: ArrayLike, name: str, size: int | None = None) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or (size is not None and array.size != size):
        expected = "a non-empty vector" if size is None else f"a vector of length {size}"
        raise ValueError(f"{name} must be {expected}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array
