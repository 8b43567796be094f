"""The training set of one boosting round: which samples, with which loss weight on which target token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray, as_offsets, as_weights, check_choice
from ensemw2s.core._parts import parts, row_parts, row_sums
from ensemw2s.core.levels import LevelWeights
from ensemw2s.core.units import sample_distribution

ReweightMethod = Literal["token_bootstrap", "sample_bootstrap", "loss"]
REWEIGHT_METHODS: tuple[ReweightMethod, ...] = ("token_bootstrap", "sample_bootstrap", "loss")


#: Most tokens that are drawn from, and most draws that are made, at once.
_BLOCK = 2**17


@dataclass(frozen=True, eq=False)
class RoundDraw:
    """What one member is trained on. r rows, each one sample (a sample may come more than once).

    The loss of a batch is sum(loss_weights * cross_entropy) / sum(denominators), both over the rows of the
    effective batch, so that the micro-batch size changes nothing.

    Attributes:
        rows: (r,) int64 sample indices, ascending.
        row_offsets: (r + 1,) int64, where each row starts in `loss_weights`.
        loss_weights: (row_offsets[-1],) float32, one per target token of each row; 0 masks the token.
        denominators: (r,) float64, what each row adds to the normalizer of the loss.
        n_tokens: how many the whole training set has.
        outside: (ceil(n_tokens / 8),) uint8, `out_of_bag` as `numpy.packbits` packs it; None: nothing is out of bag.
    """

    rows: IntArray
    row_offsets: IntArray
    loss_weights: NDArray[np.float32]
    denominators: FloatArray
    n_tokens: int
    outside: NDArray[np.uint8] | None = None

    @property
    def out_of_bag(self) -> BoolArray:
        """(n_tokens,) bool over the whole training set: tokens that were not drawn."""
        if self.outside is None:
            return np.zeros(self.n_tokens, dtype=np.bool_)
        return np.unpackbits(self.outside, count=self.n_tokens).view(np.bool_)


def draw_token_bootstrap(token_weights: ArrayLike, rng: np.random.Generator) -> IntArray:
    """How often each token is drawn, (n_tokens,) int64: as many draws as tokens, with replacement.

    A token of weight 0 is never drawn.
    """
    return np.concatenate([counts for _, counts in _draws(as_weights(token_weights, "token_weights"), rng)])


def draw_sample_bootstrap(sample_probs: ArrayLike, rng: np.random.Generator) -> IntArray:
    """How often each sample is drawn, (n_samples,) int64: as many draws as samples, with replacement."""
    return np.concatenate([counts for _, counts in _draws(as_weights(sample_probs, "sample_probs"), rng)])


def draw_round(
    round_index: int,
    method: ReweightMethod,
    weights: ArrayLike | LevelWeights,
    offsets: ArrayLike,
    rng: np.random.Generator,
    sample_weight: Literal["mean", "sum"] = "mean",
) -> RoundDraw:
    """The training set of round `round_index`.

    Args:
        round_index: from 0; round 0 takes all samples once with weight 1, and nothing is out of bag.
        method: "token_bootstrap": a token drawn c times has loss weight c (in float32 exact up to 2^24), samples
            with no drawn token are left out, a row's denominator is its number of draws. "sample_bootstrap": a
            sample drawn c times is c rows of weight 1, a row's denominator is its number of tokens. "loss": all
            samples, token weights scaled to average 1 over the set, a row's denominator is its number of tokens;
            nothing is out of bag.
        weights: (n_tokens,) token weights, as `Units.spread` gives them.
        offsets: (n_samples + 1,) where each sample's tokens start.
        rng: source of the draw; not used in round 0 or by "loss".
        sample_weight: how "sample_bootstrap" makes a sample's weight of its tokens' weights.

    Raises:
        ValueError: unknown method or sample_weight, negative round, arrays that do not fit.
    """
    check_choice(method, REWEIGHT_METHODS, "method")
    check_choice(sample_weight, ("mean", "sum"), "sample_weight")
    if round_index < 0:
        raise ValueError(f"round_index must be at least 0, got {round_index}")
    values = weights if isinstance(weights, LevelWeights) else as_weights(weights)
    n_tokens = values.size
    bounds = as_offsets(offsets, n_tokens)

    if round_index > 0 and method == "token_bootstrap":
        return _draw_tokens(values, bounds, rng)
    lengths = np.diff(bounds)
    everything = np.arange(lengths.size, dtype=np.int64)
    if round_index > 0 and method == "sample_bootstrap":
        counts = draw_sample_bootstrap(sample_distribution(values, bounds, sample_weight), rng)
        rows = np.repeat(everything, counts)
        row_offsets = _starts(lengths[rows])
        ones = np.ones(int(row_offsets[-1]), dtype=np.float32)
        outside = np.packbits(np.repeat(counts == 0, lengths))
        return RoundDraw(rows, row_offsets, ones, lengths[rows].astype(np.float64), n_tokens, outside)
    scaled = np.ones(n_tokens, dtype=np.float32)
    if round_index > 0:
        scale = n_tokens / values.sum()
        for part in parts(n_tokens):
            scaled[part] = values[part] * scale
    return RoundDraw(everything, bounds, scaled, lengths.astype(np.float64), n_tokens)


def _draw_tokens(weights: FloatArray | LevelWeights, bounds: IntArray, rng: np.random.Generator) -> RoundDraw:
    """The training set of a token bootstrap, in 4 bytes a token beside what is given and what samples take."""
    n_tokens = weights.size
    loss_weights = np.empty(n_tokens, dtype=np.float32)
    outside = np.empty(-(-n_tokens // 8), dtype=np.uint8)
    for part, counts in _draws(weights, rng):
        loss_weights[part] = counts
        outside[part.start // 8 : -(-part.stop // 8)] = np.packbits(counts == 0)
    drawn = row_sums(loss_weights, bounds)
    kept = drawn > 0
    rows = np.flatnonzero(kept)
    if rows.size == kept.size:
        return RoundDraw(rows, bounds, loss_weights, drawn, n_tokens, outside)
    # What is kept moves up in place.
    end = 0
    for part in row_parts(bounds):
        begin, stop = int(bounds[part.start]), int(bounds[part.stop])
        lengths = np.diff(bounds[part.start : part.stop + 1])
        own = loss_weights[begin:stop][np.repeat(kept[part], lengths)]
        loss_weights[end : end + own.size] = own
        end += own.size
    drawn = drawn[rows]
    return RoundDraw(rows, _starts(np.diff(bounds)[rows]), loss_weights[:end], drawn, n_tokens, outside)


def _draws(weights: FloatArray | LevelWeights, rng: np.random.Generator) -> Iterator[tuple[slice, IntArray]]:
    """As many draws as entries, with replacement, a block of entries after another: its place, and (entries,) counts.

    How many draws fall into a block is binomial, given how many fell into those before it; where they fall in the block does
    not depend on the others. So the counts of all are multinomial.
    """
    blocks = list(parts(weights.size, _BLOCK))
    masses = np.array([float(weights[block].sum()) for block in blocks])
    # The mass of a block and of all after it, by summation: a difference from the total would lose digits.
    rest = np.cumsum(masses[::-1])[::-1]
    left = weights.size
    for block, mass, others in zip(blocks, masses, rest, strict=True):
        here = 0
        if mass > 0.0:
            # The last that has any mass takes all that are left.
            here = left if mass == others else int(rng.binomial(left, min(mass / others, 1.0)))
        left -= here
        yield block, _draws_within(weights[block], here, rng)


def _draws_within(weights: FloatArray, n: int, rng: np.random.Generator) -> IntArray:
    # By the inverse of the distribution function: numpy's multinomial gives whatever rounding leaves over to
    # the last entry, even when that entry has weight 0. Sorted draws make the search walk through memory.
    counts = np.zeros(weights.size, dtype=np.int64)
    if n == 0:
        return counts
    cumulative = np.cumsum(weights)
    cumulative /= cumulative[-1]
    for several in parts(n, _BLOCK):
        points = rng.random(several.stop - several.start)
        points.sort()
        for part in parts(points.size):
            drawn = np.searchsorted(cumulative, points[part], side="right")
            first = int(drawn[0])
            found = np.bincount(drawn - first)
            counts[first : first + found.size] += found
    return counts


def _starts(lengths: IntArray) -> IntArray:
    starts = np.zeros(lengths.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
