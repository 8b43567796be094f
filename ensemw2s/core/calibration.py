"""Is a confidence worth its number: reliability, expected calibration error, proper scores, temperature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray, as_flags, as_offsets, check_choice
from ensemw2s.core._ragged import as_places, row_log_softmax

Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class ReliabilityBin:
    """One row of a reliability table.

    Attributes:
        low, high: ends of the bin; a confidence c is in it when low < c <= high (the first bin holds 0 too).
        n: samples in the bin; where it is 0 the two means are None.
        confidence, accuracy: their means.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def reliability_table(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 10, binning: Binning = "width"
) -> list[ReliabilityBin]:
    """Mean confidence against accuracy in bins of confidence.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) booleans, or 0 and 1.
        n_bins: at least 1.
        binning: "width": equal parts of [0, 1] (Guo et al., "On calibration of modern neural networks", 2017, section
            2). "mass": about equal numbers of samples (Nguyen and O'Connor, "Posterior calibration and exploratory
            analysis", 2015, section 3.2); equal confidences always share a bin, whatever the order of the samples, so
            there may be fewer bins.

    Raises:
        ValueError: shapes that do not fit, a confidence outside [0, 1], n_bins below 1.
    """
    values, flags = _as_pair(confidence, correct)
    check_choice(binning, ("width", "mass"), "binning")
    if not isinstance(n_bins, (int, np.integer)) or isinstance(n_bins, bool) or n_bins < 1:
        raise ValueError(f"n_bins must be an integer of at least 1, got {n_bins}")
    if binning == "width":
        edges = np.arange(n_bins + 1) / n_bins
    else:
        ordered = np.sort(values)
        last = [ordered[-(-k * values.size // n_bins) - 1] for k in range(1, n_bins)]
        edges = np.unique(np.concatenate(([0.0], last, [1.0])))
    place = np.maximum(np.searchsorted(edges, values, side="left") - 1, 0)
    table = []
    for b in range(edges.size - 1):
        inside = place == b
        n = int(inside.sum())
        means = (float(values[inside].mean()), float(flags[inside].mean())) if n else (None, None)
        table.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), n, *means))
    return table


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 10, binning: Binning = "width"
) -> float:
    """ECE = sum_b n_b / n |accuracy_b - confidence_b| over the bins of `reliability_table`.

    Guo et al. 2017, equation 3. It depends on the bins and is biased upward in small samples, so compare only values
    with the same number of bins on the same samples.
    """
    table = reliability_table(confidence, correct, n_bins=n_bins, binning=binning)
    total = sum(b.n for b in table)
    return sum(
        b.n / total * abs(b.accuracy - b.confidence)
        for b in table
        if b.accuracy is not None and b.confidence is not None
    )


def brier_score(probs: ArrayLike, offsets: ArrayLike, truth: ArrayLike) -> float:
    """Mean over the questions of sum_c (p_c - [c = truth])^2, in [0, 2] (Brier, 1950; the form for several classes).

    Args:
        probs: (N,) probabilities of all choices, one question after another.
        offsets: (n + 1,) where each question's choices start.
        truth: (n,) index of the right choice.

    Raises:
        ValueError: shapes that do not fit, or a question whose probabilities are negative or do not sum to 1.
    """
    values, bounds, right = _as_distributions(probs, offsets, truth)
    target = np.zeros_like(values)
    target[bounds[:-1] + right] = 1.0
    return float(np.square(values - target).sum() / right.size)


def negative_log_likelihood(probs: ArrayLike, offsets: ArrayLike, truth: ArrayLike) -> float:
    """Mean of -log p(truth) in nats, arguments as in `brier_score`; infinite where a truth has probability 0."""
    values, bounds, right = _as_distributions(probs, offsets, truth)
    with np.errstate(divide="ignore"):
        return float(-np.log(values[bounds[:-1] + right]).mean())


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature.

    Attributes:
        temperature: T; the calibrated probabilities are softmax(scores / T). Above 1: the member was overconfident.
        nll_before, nll_after: mean negative log-likelihood of the truth in nats, at T = 1 and at the fitted T.
        at_bound: the best T lies outside the allowed range (all answers right, or scores worse than none).
    """

    temperature: float
    nll_before: float
    nll_after: float
    at_bound: bool


def fit_temperature(
    scores: ArrayLike,
    offsets: ArrayLike,
    truth: ArrayLike,
    *,
    lowest: float = 0.05,
    highest: float = 20.0,
    tolerance: float = 1e-10,
) -> TemperatureFit:
    """Temperature that minimizes the negative log-likelihood of the truth (Guo et al. 2017, section 4.2).

    In b = 1/T the function is convex, a mean of log-sum-exp minus linear terms, so its derivative

        mean_i ( E_b[scores of i] - score of i's truth ),   E_b under softmax(b * scores)

    never falls and its root is found by Newton's method kept inside a bracket: a step that leaves the bracket or does
    not halve the derivative is replaced by bisection. It always converges to the minimum on [1/highest, 1/lowest].
    (In log T the function has one minimum too, but need not be convex.)

    Args:
        scores: (N,) scores or log-probabilities of the choices; -inf is allowed except for a truth.
        offsets: (n + 1,) where each question's choices start.
        truth: (n,) index of the right choice.
        lowest, highest: range of T, positive.
        tolerance: relative, of b.

    Raises:
        ValueError: shapes that do not fit, NaN, a truth of score -inf, a range that is not one.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not values.max() < np.inf:
        raise ValueError(f"scores must be a non-empty vector without NaN or +inf, got shape {values.shape}")
    if not 0.0 < lowest < highest < np.inf:
        raise ValueError(
            f"lowest and highest must be a range of positive numbers, got {lowest} and {highest}"
        )
    bounds = as_offsets(offsets, values.size)
    places = bounds[:-1] + as_places(truth, bounds)
    if not np.isfinite(values[places]).all():
        raise ValueError("the right choice of a question has probability 0, which no temperature changes")
    # Finite stand-ins for -inf weigh nothing at any allowed temperature, and 0 * -inf has no value.
    logs = row_log_softmax(values, bounds)
    logs = np.where(np.isfinite(logs), logs, -1e6 * highest)
    starts = bounds[:-1]

    def slopes(b: float) -> tuple[float, float]:
        p = np.exp(row_log_softmax(b * logs, bounds))
        mean = np.add.reduceat(p * logs, starts)
        spread = np.add.reduceat(p * np.square(logs - np.repeat(mean, np.diff(bounds))), starts)
        return float((mean - logs[places]).mean()), float(spread.mean())

    def nll(b: float) -> float:
        return float(-row_log_softmax(b * logs, bounds)[places].mean())

    low, high = 1.0 / highest, 1.0 / lowest
    ends = slopes(low)[0], slopes(high)[0]
    if max(abs(end) for end in ends) <= 1e-12:
        # The scores say nothing, so that every temperature is as good: 1 changes least.
        b = min(max(1.0, low), high)
        return TemperatureFit(1.0 / b, nll(1.0), nll(b), at_bound=False)
    if ends[0] >= 0.0 or ends[1] <= 0.0:
        b = low if ends[0] >= 0.0 else high
        return TemperatureFit(1.0 / b, nll(1.0), nll(b), at_bound=True)
    b = min(max(1.0, low), high)
    slope, curvature = slopes(b)
    while high - low > tolerance * b and slope != 0.0:
        low, high = (b, high) if slope < 0.0 else (low, b)
        newton = b - slope / curvature if curvature > 0.0 else math.nan
        candidate = newton if low < newton < high else 0.5 * (low + high)
        if candidate in (low, high):
            break
        next_slope, next_curvature = slopes(candidate)
        if abs(next_slope) > 0.5 * abs(slope):
            low, high = (candidate, high) if next_slope < 0.0 else (low, candidate)
            candidate = 0.5 * (low + high)
            next_slope, next_curvature = slopes(candidate)
        if abs(candidate - b) <= tolerance * b:
            b = candidate
            break
        b, slope, curvature = candidate, next_slope, next_curvature
    return TemperatureFit(1.0 / b, nll(1.0), nll(b), at_bound=False)


def _as_pair(confidence: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, BoolArray]:
    values = np.asarray(confidence, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"confidence must be a non-empty vector, got shape {values.shape}")
    if not (values.min() >= 0.0 and values.max() <= 1.0):
        raise ValueError(f"confidence must lie in [0, 1], got {values.min()} to {values.max()}")
    return values, as_flags(correct, values.size, "correct")


def _as_distributions(
    probs: ArrayLike, offsets: ArrayLike, truth: ArrayLike
) -> tuple[FloatArray, IntArray, IntArray]:
    values = np.asarray(probs, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not values.min() >= 0.0:
        raise ValueError(
            f"probs must be a non-empty vector of numbers that are not negative, got shape {values.shape}"
        )
    bounds = as_offsets(offsets, values.size)
    sums = np.add.reduceat(values, bounds[:-1])
    off = np.abs(sums - 1.0)
    if not off.max() < 1e-6:
        where = int(np.argmax(off))
        raise ValueError(
            f"the probabilities of each question must sum to 1, those of {where} sum to {sums[where]}"
        )
    return values, bounds, as_places(truth, bounds)
