"""The training set of one boosting round: which samples, with which loss weight on which target token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray, as_offsets, as_weights, check_choice
from ensemw2s.core._parts import parts
from ensemw2s.core.units import sample_distribution

ReweightMethod = Literal["token_bootstrap", "sample_bootstrap", "loss"]
REWEIGHT_METHODS: tuple[ReweightMethod, ...] = ("token_bootstrap", "sample_bootstrap", "loss")


@dataclass(frozen=True, eq=False)
class RoundDraw:
    """What one member is trained on. r rows, each one sample (a sample may come more than once).

    The loss of a batch is sum(loss_weights * cross_entropy) / sum(denominators), both over the rows of the
    effective batch, so that the micro-batch size changes nothing.

    Attributes:
        rows: (r,) int64 sample indices, ascending.
        row_offsets: (r + 1,) int64, where each row starts in `loss_weights`.
        loss_weights: (row_offsets[-1],) float64, one per target token of each row; 0 masks the token.
        denominators: (r,) float64, what each row adds to the normalizer of the loss.
        out_of_bag: (n_tokens,) bool over the whole training set: tokens that were not drawn.
    """

    rows: IntArray
    row_offsets: IntArray
    loss_weights: FloatArray
    denominators: FloatArray
    out_of_bag: BoolArray


def draw_token_bootstrap(token_weights: ArrayLike, rng: np.random.Generator) -> IntArray:
    """How often each token is drawn, (n_tokens,) int64: as many draws as tokens, with replacement.

    A token of weight 0 is never drawn.
    """
    return _draw_counts(as_weights(token_weights, "token_weights"), rng)


def draw_sample_bootstrap(sample_probs: ArrayLike, rng: np.random.Generator) -> IntArray:
    """How often each sample is drawn, (n_samples,) int64: as many draws as samples, with replacement."""
    return _draw_counts(as_weights(sample_probs, "sample_probs"), rng)


def draw_round(
    round_index: int,
    method: ReweightMethod,
    weights: ArrayLike,
    offsets: ArrayLike,
    rng: np.random.Generator,
    sample_weight: Literal["mean", "sum"] = "mean",
) -> RoundDraw:
    """The training set of round `round_index`.

    Args:
        round_index: from 0; round 0 takes all samples once with weight 1, and nothing is out of bag.
        method: "token_bootstrap": a token drawn c times has loss weight c, samples with no drawn token are
            left out, a row's denominator is its number of draws. "sample_bootstrap": a sample drawn c times
            is c rows of weight 1, a row's denominator is its number of tokens. "loss": all samples, token
            weights scaled to average 1 over the set, a row's denominator is its number of tokens; nothing is
            out of bag.
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
    values = as_weights(weights)
    bounds = as_offsets(offsets, values.size)
    lengths = np.diff(bounds)
    everything = np.arange(lengths.size, dtype=np.int64)
    nothing_out = np.zeros(values.size, dtype=np.bool_)

    if round_index == 0:
        return RoundDraw(everything, bounds, np.ones(values.size), lengths.astype(np.float64), nothing_out)
    if method == "loss":
        scaled = values * (values.size / values.sum())
        return RoundDraw(everything, bounds, scaled, lengths.astype(np.float64), nothing_out)
    if method == "sample_bootstrap":
        counts = draw_sample_bootstrap(sample_distribution(values, bounds, sample_weight), rng)
        rows = np.repeat(everything, counts)
        row_offsets = _starts(lengths[rows])
        ones = np.ones(int(row_offsets[-1]))
        return RoundDraw(
            rows, row_offsets, ones, lengths[rows].astype(np.float64), np.repeat(counts == 0, lengths)
        )
    counts = draw_token_bootstrap(values, rng)
    drawn = np.add.reduceat(counts, bounds[:-1])
    kept = drawn > 0
    loss_weights = counts[np.repeat(kept, lengths)].astype(np.float64)
    return RoundDraw(
        everything[kept], _starts(lengths[kept]), loss_weights, drawn[kept].astype(np.float64), counts == 0
    )


def _draw_counts(weights: FloatArray, rng: np.random.Generator) -> IntArray:
    # By the inverse of the distribution function: numpy's multinomial gives whatever rounding leaves over to
    # the last entry, even when that entry has weight 0. Sorted draws make the search walk through memory.
    cumulative = np.cumsum(weights)
    cumulative /= cumulative[-1]
    points = rng.random(weights.size)
    points.sort()
    counts = np.zeros(weights.size, dtype=np.int64)
    # In parts: the places of all draws would be another array of the size of the weights, or two.
    for part in parts(weights.size):
        drawn = np.searchsorted(cumulative, points[part], side="right")
        first = int(drawn[0])
        found = np.bincount(drawn - first)
        counts[first : first + found.size] += found
    return counts


def _starts(lengths: IntArray) -> IntArray:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths)))
