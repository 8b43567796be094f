"""Drawing a token from the voted distribution, from the tokens that members sent where that is enough.

A draw at temperature tau and with top-p takes tokens in the order of their voted probability P, ties by id, with the masses
q(v) = P(v)^(1/tau); the nucleus is the shortest prefix that holds at least top_p of all mass (Holtzman et al., "The
curious case of neural text degeneration", 2020); a uniform number u picks the token of the nucleus by inverse
distribution function. The same u gives the same token whether it is found in the full row (`draw_dense`) or proven
from the most probable tokens (`draw_certified`), so that a proof that fails costs time, never exactness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray
from ensemw2s.core.sparse import VoteBounds

# Rows of a softmax in single precision add up to 1 only about this well.
_ROW_SUM_ERROR = 2.0**-16
# Powers and sums of the same numbers may differ in their last bits between arrays of other lengths.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SamplingParams:
    """How a token is picked from the voted distribution.

    Attributes:
        temperature: 0 takes the argmax.
        top_p: in (0, 1]; 1 cuts nothing.
        seed: of the draws, any integer.

    Raises:
        ValueError: a value outside of these ranges.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature must be in 0..100, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def greedy(self) -> bool:
        """No draw: the argmax."""
        return self.temperature == 0.0

    @property
    def plain(self) -> bool:
        """The mixture itself: a member is drawn by its weight, then a token from that member."""
        return self.temperature == 1.0 and self.top_p == 1.0


def uniforms(seed: int, step: int) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on the request's seed and the token's place in its text, on nothing else.

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the step as its counter.
    """
    bits = np.random.Philox(key=seed % 2**128, counter=[0, 0, 0, step])
    first, second = np.random.Generator(bits).random(2)
    return float(first), float(second)


def draw_member(alphas: ArrayLike, u: float) -> int:
    """Index of the member whose distribution is drawn from, (T,) weights, u in [0, 1)."""
    return draw_token(np.asarray(alphas, dtype=np.float64), u)


def draw_token(probs: ArrayLike, u: float) -> int:
    """Token by inverse distribution function in the order of ids: (V,) not negative, not all 0, u in [0, 1)."""
    cumulative = np.cumsum(np.asarray(probs), dtype=np.float64)
    # Rounding may carry u * total up to the total: the last token that has any mass.
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), last)


def certified_head(bounds: VoteBounds) -> tuple[BoolArray, FloatArray]:
    """The candidates that are surely the most probable tokens, with exactly known probability.

    Returns:
        (B, M) bool: known, and above the bound of every token that is not among them; and that bound, (B,) float64.
    """
    hidden = np.where(bounds.known | (bounds.ids < 0), -np.inf, bounds.high)
    ceiling = np.maximum(bounds.unseen, hidden.max(axis=1))
    return bounds.known & (bounds.value > ceiling[:, None]), ceiling


def ranked(ids: IntArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    """Tokens by value descending, ties by id: (m,), (m,) -> (m,), (m,)."""
    order = np.lexsort((ids, -values))
    return ids[order], values[order]


def head_of(probs: FloatArray, n: int) -> tuple[IntArray, FloatArray]:
    """At least the n most probable tokens of a whole distribution, (V,), in order; all that tie with the n-th."""
    if n <= 0:
        return np.zeros(0, dtype=np.int64), probs[:0]
    if n >= len(probs):
        return ranked(np.arange(len(probs)), probs)
    lowest = np.partition(probs, len(probs) - n)[len(probs) - n]
    ids = np.flatnonzero(probs >= lowest)
    return ranked(ids, probs[ids])


def draw_dense(probs: FloatArray, params: SamplingParams, u: float) -> int:
    """Token drawn from a whole voted distribution, (V,) float64; temperature above 0."""
    masses = _masses(probs, probs.max(), params.temperature)
    total = masses.sum()
    n = 64
    while True:
        ids, _ = head_of(probs, n)
        cumulative = np.cumsum(masses[ids])
        whole = len(ids) == len(probs)
        if whole or cumulative[-1] > (params.top_p if params.top_p < 1.0 else u) * total * (1.0 + _ROUNDING):
            break
        n *= 16
    mass = total
    if params.top_p < 1.0:
        mass = cumulative[min(int(np.searchsorted(cumulative, params.top_p * total)), len(ids) - 1)]
    # Rounding may carry u * mass up to all there is: the last token that has any.
    last = int(np.searchsorted(cumulative, min(mass, cumulative[-1])))
    return int(ids[min(int(np.searchsorted(cumulative, u * mass, side="right")), last)])


def draw_certified(
    values: FloatArray, n_tokens: int, ceiling: float, params: SamplingParams, u: float
) -> int | None:
    """The place in the order of `draw_dense` that it would take, or None where the head does not prove it.

    Args:
        values: (m,) float64, the m largest voted probabilities, descending.
        n_tokens: V; the other V - m tokens share what is left.
        ceiling: no other token is more probable.
        params: temperature above 0.
        u: in [0, 1).
    """
    if len(values) == 0:
        return None
    cumulative = np.cumsum(_masses(values, values[0], params.temperature))
    low, high = _tail_mass(values, n_tokens, ceiling, params.temperature)
    if params.top_p == 1.0:
        places = [
            _place(cumulative, u * (cumulative[-1] + tail), side) for tail, side in ((low, -1), (high, 1))
        ]
    else:
        ends = [
            _place(cumulative, params.top_p * (cumulative[-1] + tail), side)
            for tail, side in ((low, -1), (high, 1))
        ]
        if ends[0] != ends[1] or ends[0] == len(values):
            return None
        places = [_place(cumulative, u * cumulative[ends[0]], side) for side in (-1, 1)]
    return places[0] if places[0] == places[1] < len(values) else None


def _place(cumulative: FloatArray, mass: float, side: int) -> int:
    """First entry whose cumulative mass is above `mass`, which is moved a little to one side."""
    return int(np.searchsorted(cumulative, mass * (1.0 + side * _ROUNDING) + side * _ROUNDING, side="right"))


def _masses(values: FloatArray, largest: float, temperature: float) -> FloatArray:
    # Relative to the largest, so that low temperatures underflow in the tail alone.
    return np.asarray((values / largest) ** (1.0 / temperature), dtype=np.float64)


def _tail_mass(values: FloatArray, n_tokens: int, ceiling: float, temperature: float) -> tuple[float, float]:
    """Bounds of the sum of (P/P_max)^p over the tokens not in `values`, p = 1/temperature.

    n tokens share the probability r = 1 - sum(values), each has at most h = ceiling. For p >= 1 the sum of P^p is at most
    h^(p-1) r, and at least 0. For p < 1 it is at least h^(p-1) r, since P^(p-1) falls with P, and by concavity at most
    n^(1-p) r^p. In neither case more than n h^p.
    """
    n = n_tokens - len(values)
    if n <= 0:
        return 0.0, 0.0
    power, largest = 1.0 / temperature, float(values[0])
    left = 1.0 - float(values.sum())
    least, most = max(0.0, left - _ROW_SUM_ERROR), max(0.0, left + _ROW_SUM_ERROR) / largest
    top = max(0.0, ceiling) / largest
    if top == 0.0:
        return 0.0, 0.0
    cap = n * top**power
    if power >= 1.0:
        return (least if power == 1.0 else 0.0) / largest, min(cap, top ** (power - 1.0) * most)
    return top ** (power - 1.0) * least / largest, min(cap, n ** (1.0 - power) * most**power)
