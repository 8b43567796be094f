"""Comparisons with their uncertainty: accuracy, paired differences, performance gap recovered.

Scores are per sample, (n,), or (n_seeds, n) for runs that answered the same samples with several seeds. A
resample draws seeds with replacement and samples with replacement, the same samples for every drawn seed and
every system (Owen, "The pigeonhole bootstrap", 2007): a hard sample is hard for every seed, so treating the
answers of several seeds as independent would make the intervals too short. Intervals are percentile intervals
with the two order statistics taken outward, never interpolated.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import FloatArray

# Entries of the largest temporary array: 4 million, 32 MiB in float64.
_CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A number and how far it can be trusted.

    Attributes:
        value: the number on all samples.
        low, high: ends of the interval.
        n: samples that it rests on (not counting seeds).
        level: coverage that the interval aims at.
        p_value: of the hypothesis that the value is 0, where a test was made.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `p_value` only where there is one."""
        fields = asdict(self)
        if self.p_value is None:
            del fields["p_value"]
        return fields


def performance_gap_recovered(weak: float, student: float, ceiling: float) -> float | None:
    """(student - weak) / (ceiling - weak) (Burns et al., "Weak-to-strong generalization", 2023, section 3).

    None where it has no value: the ceiling equals the weak one, or a number is not finite.
    """
    gap = ceiling - weak
    if gap == 0.0 or not (math.isfinite(gap) and math.isfinite(student)):
        return None
    return (student - weak) / gap


def accuracy_interval(correct: ArrayLike, *, n_resamples: int, seed: int, level: float = 0.95) -> Interval:
    """Mean score with its bootstrap interval.

    Args:
        correct: (n,) or (n_seeds, n) booleans or finite scores. With all samples right or all wrong the
            interval has length 0, as nothing was seen to vary.
        n_resamples: bootstrap resamples, at least 1.
        seed: of the resampling.
        level: in (0, 1).

    Raises:
        ValueError: empty or non-finite scores, or a bad option.
    """
    (scores,) = _as_scores(correct)
    means = _resampled_means(scores[None], n_resamples, seed)[0]
    return Interval(float(scores.mean()), *_ends(means, means, level), n=scores.shape[1], level=level)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, n_resamples: int, seed: int, level: float = 0.95, test: bool = False
) -> Interval:
    """Mean of a - b with its paired bootstrap interval; no resample is dropped.

    With `test` it has a two-sided p-value that a and b score alike, from the same resamples: the interval of level 1 - p is about the
    widest that leaves out 0. p = 2 (k + 1) / (n_resamples + 1), at most 1, k the resamples whose mean difference is 0 or on the other
    side of it than most (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 15.4, with Phipson and Smyth's 1).
    Unlike a permutation of the questions it varies the seeds, too.

    Args:
        a, b: (n,) or (n_seeds, n) scores of two systems on the same samples.
        n_resamples, seed, level: as in `accuracy_interval`.
        test: give a p-value.

    Raises:
        ValueError: shapes differ, empty or non-finite scores, or a bad option.
    """
    first, second = _as_scores(a, b)
    difference = first - second
    means = _resampled_means(difference[None], n_resamples, seed)[0]
    p = None
    if test:
        beyond = min(int(np.count_nonzero(means <= 0.0)), int(np.count_nonzero(means >= 0.0)))
        p = min(1.0, 2.0 * (beyond + 1) / (n_resamples + 1))
    return Interval(
        float(difference.mean()), *_ends(means, means, level), n=difference.shape[1], level=level, p_value=p
    )


def paired_permutation(a: ArrayLike, b: ArrayLike, *, n_permutations: int, seed: int) -> float:
    """Two-sided p-value that a and b score alike: the sign of each sample's difference is flipped at random.

    p = (k + 1) / (n_permutations + 1), k the permutations whose mean difference is at least as far from 0 as
    the observed one (Phipson and Smyth, "Permutation p-values should never be zero", 2010). Scores of several
    seeds are averaged over the seeds first, as a sample, not an answer, is what was drawn.

    Args:
        a, b: (n,) or (n_seeds, n) scores of two systems on the same samples.
        n_permutations: random sign assignments, at least 1.
        seed: of the sign flips.

    Raises:
        ValueError: shapes differ, empty or non-finite scores, n_permutations below 1.
    """
    _check_count(n_permutations, "n_permutations")
    first, second = _as_scores(a, b)
    difference = (first - second).mean(axis=0)
    difference = difference[difference != 0.0]  # a flipped 0 changes nothing
    # Sums that are equal on paper may differ in the last bits; those must count as equally far from 0.
    threshold = abs(float(difference.sum())) - 1e-12 * float(np.abs(difference).sum())
    rng = np.random.default_rng(seed)
    n_extreme = 0
    for size in _chunks(n_permutations, difference.size):
        signs = rng.integers(0, 2, (size, difference.size), dtype=np.int8) * np.int8(2) - np.int8(1)
        n_extreme += int(np.count_nonzero(np.abs(signs.astype(np.float64) @ difference) >= threshold))
    return (n_extreme + 1) / (n_permutations + 1)


def pgr_interval(
    weak: ArrayLike,
    student: ArrayLike,
    ceiling: ArrayLike,
    *,
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval | None:
    """Performance gap recovered with its paired bootstrap interval; None where there may be no gap.

    PGR is undefined, and None returned, unless the bootstrap interval of (ceiling - weak) lies above 0: where it
    holds 0 the gap may be nothing, and where it lies below 0 the ceiling is worse than the weak model and there is
    nothing to recover. Otherwise a few resamples may still have no gap. They stay in: they count as the limit that
    PGR runs to while the gap shrinks to 0, +inf or -inf by the sign of (student - weak), and as both (-inf for the
    low end, +inf for the high end) where that difference is 0 too. As they are fewer than the tail that each end
    cuts off, both ends are finite.

    Args:
        weak, student, ceiling: (n,) or (n_seeds, n) scores of three systems on the same samples.
        n_resamples, seed, level: as in `accuracy_interval`.

    Raises:
        ValueError: shapes differ, empty or non-finite scores, or a bad option.
    """
    scores = np.stack(_as_scores(weak, student, ceiling))
    value = performance_gap_recovered(*(float(mean) for mean in scores.mean(axis=(1, 2))))
    # Differences are taken per sample, so that three equal systems differ by exactly 0 in every resample.
    recovered, gap = _resampled_means(scores[1:] - scores[0], n_resamples, seed)
    gap_low, _ = _ends(gap, gap, level)
    if value is None or gap_low <= 0.0:
        return None
    ratio = np.divide(recovered, gap, out=np.copysign(np.inf, recovered), where=gap > 0.0)
    undecided = (gap <= 0.0) & (recovered == 0.0)
    ends = _ends(np.where(undecided, -np.inf, ratio), np.where(undecided, np.inf, ratio), level)
    return Interval(value, *ends, n=scores.shape[2], level=level)


def _as_scores(*systems: ArrayLike) -> list[FloatArray]:
    """Each (n_seeds, n) float64, all of one shape, finite."""
    arrays = [np.asarray(system, dtype=np.float64) for system in systems]
    shape = arrays[0].shape
    if any(array.shape != shape for array in arrays) or len(shape) not in (1, 2) or arrays[0].size == 0:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"scores must be non-empty, (n,) or (n_seeds, n), and of one shape, got {shapes}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("scores must be finite, got NaN or infinity")
    return [np.atleast_2d(array) for array in arrays]


def _resampled_means(scores: FloatArray, n_resamples: int, seed: int) -> FloatArray:
    """(n_statistics, n_resamples) means of (n_statistics, n_seeds, n) scores, the same resamples for all."""
    _check_count(n_resamples, "n_resamples")
    n_statistics, n_seeds, n = scores.shape
    # A stream each, so that the result does not depend on how the resamples are cut into chunks.
    seed_rng, sample_rng = np.random.default_rng(seed).spawn(2)
    flat = scores.reshape(n_statistics * n_seeds, n)
    parts = []
    for size in _chunks(n_resamples, max(n, n_statistics * n_seeds)):
        sample_counts = _count_draws(sample_rng, size, n)
        seed_counts = _count_draws(seed_rng, size, n_seeds)
        sums = (flat @ sample_counts.T).reshape(n_statistics, n_seeds, size)
        parts.append(np.einsum("gsr,rs->gr", sums, seed_counts) / (n * n_seeds))
    return np.concatenate(parts, axis=1)


def _count_draws(rng: np.random.Generator, n_resamples: int, n: int) -> FloatArray:
    """(n_resamples, n) how often each of n is drawn in n draws with replacement."""
    drawn = rng.integers(0, n, (n_resamples, n))
    drawn += np.arange(n_resamples)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n).astype(np.float64)


def _ends(for_low: FloatArray, for_high: FloatArray, level: float) -> tuple[float, float]:
    """Percentile ends. Both cut off the same number of resamples; none is interpolated (inf stays inf)."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    last = for_low.size - 1
    cut = math.floor((1.0 - level) / 2.0 * last)
    return float(np.partition(for_low, cut)[cut]), float(np.partition(for_high, last - cut)[last - cut])


def _chunks(total: int, width: int) -> list[int]:
    """Sizes of the chunks that cut `total` rows of `width` entries into arrays of bounded memory."""
    size = max(1, _CHUNK_ENTRIES // max(width, 1))
    return [min(size, total - start) for start in range(0, total, size)]


def _check_count(value: int, name: str) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value}")
