"""Difficulty by out-of-fold confidence: each sample is rated by models that never saw it, and that is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemw2s.core._checks import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class FoldScores:
    """What the models of one fold say about the samples held out from them.

    Attributes:
        fold: number of the fold, for messages.
        trained_on: ids of the samples that these models were trained on.
        ids: ids of the samples rated.
        confidence: (len(ids),) or (models, len(ids)) probability of the right answer, in [0, 1].
    """

    fold: int
    trained_on: frozenset[str]
    ids: tuple[str, ...]
    confidence: FloatArray


def assign_folds(
    ids: Sequence[str], n_folds: int, *, seed: int = 0, groups: Sequence[str] | None = None
) -> IntArray:
    """Fold of each sample, (n,) int64 in 0..n_folds - 1, by the SHA-256 of "seed:id".

    It depends on the seed and the set of ids, not on their order, and the folds differ in size by at most one group.

    Args:
        ids: of the samples, all different.
        n_folds: at least 2, at most the number of groups.
        seed: of the assignment.
        groups: one key a sample; samples of one group (the same question with other choices, say) share a fold, so
            that no model is trained on a twin of what it rates. Default: every sample is its own group.

    Raises:
        ValueError: repeated ids, a wrong number of groups, n_folds outside its range.
    """
    _check_unique(ids)
    keys = list(ids) if groups is None else list(groups)
    if len(keys) != len(ids):
        raise ValueError(f"groups must have one key a sample, {len(ids)}, got {len(keys)}")
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
    if not isinstance(n_folds, int) or isinstance(n_folds, bool) or not 2 <= n_folds <= len(distinct):
        raise ValueError(
            f"n_folds must be an integer from 2 to the number of groups, {len(distinct)}, got {n_folds}"
        )
    fold = {key: rank % n_folds for rank, key in enumerate(distinct)}
    return np.array([fold[key] for key in keys], dtype=np.int64)


def check_out_of_fold(
    ids: Sequence[str], parts: Sequence[FoldScores], *, groups: Sequence[str] | None = None
) -> None:
    """Refuse ratings that are not out of fold.

    Args:
        ids: of all samples.
        parts: what each fold's models were trained on and what they rated.
        groups: as in `assign_folds`; a model must not have seen any sample of a group that it rates.

    Raises:
        ValueError: a rated sample (or one of its group) was trained on, a sample is rated by no fold or by two, an id
            is unknown, or a confidence has the wrong shape or lies outside [0, 1].
    """
    _check_unique(ids)
    if groups is not None and len(groups) != len(ids):
        raise ValueError(f"groups must have one key a sample, {len(ids)}, got {len(groups)}")
    group = dict(zip(ids, ids if groups is None else groups, strict=True))
    rated: dict[str, int] = {}
    for part in parts:
        values = np.asarray(part.confidence, dtype=np.float64)
        if values.ndim not in (1, 2) or values.shape[-1] != len(part.ids) or values.size == 0:
            raise ValueError(
                f"fold {part.fold} must have one confidence for each of its {len(part.ids)} samples, got shape {values.shape}"
            )
        if not (values.min() >= 0.0 and values.max() <= 1.0):
            raise ValueError(
                f"confidences of fold {part.fold} must lie in [0, 1], got {values.min()} to {values.max()}"
            )
        unknown = [i for i in (*part.ids, *part.trained_on) if i not in group]
        if unknown:
            raise ValueError(f"fold {part.fold} names {len(unknown)} unknown samples, such as {unknown[0]!r}")
        seen = {group[i] for i in part.trained_on}
        leaked = [i for i in part.ids if group[i] in seen]
        if leaked:
            raise ValueError(
                f"leak: the models of fold {part.fold} were trained on {len(leaked)} of the samples that they rate, "
                f"or on their groups, such as {leaked[0]!r}"
            )
        for i in part.ids:
            if i in rated:
                raise ValueError(f"sample {i!r} is rated by fold {rated[i]} and by fold {part.fold}")
            rated[i] = part.fold
    missing = [i for i in ids if i not in rated]
    if missing:
        raise ValueError(f"{len(missing)} of {len(ids)} samples are rated by no fold, such as {missing[0]!r}")


def out_of_fold_rating(
    ids: Sequence[str], parts: Sequence[FoldScores], *, groups: Sequence[str] | None = None
) -> FloatArray:
    """Difficulty 1 - (mean over the models of the probability of the right answer), (n,) in the order of `ids`.

    Raises:
        ValueError: as `check_out_of_fold`, which is always run.
    """
    check_out_of_fold(ids, parts, groups=groups)
    rating: dict[str, float] = {}
    for part in parts:
        mean = np.atleast_2d(np.asarray(part.confidence, dtype=np.float64)).mean(axis=0)
        rating.update(zip(part.ids, (1.0 - mean).tolist(), strict=True))
    return np.array([rating[i] for i in ids])


def _check_unique(ids: Sequence[str]) -> None:
    if not ids:
        raise ValueError("ids must not be empty")
    if len(set(ids)) != len(ids):
        repeated = next(i for i in ids if list(ids).count(i) > 1)
        raise ValueError(f"ids must be different, {repeated!r} stands there twice")
