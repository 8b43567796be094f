"""The draw of a round: loss weights, normalizers and out-of-bag tokens of the three methods."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core import draws
from ensemw2s.core.boosting import (
    REWEIGHT_METHODS,
    draw_round,
    draw_sample_bootstrap,
    draw_token_bootstrap,
    sample_distribution,
)

OFFSETS = np.array([0, 2, 3, 6])
WEIGHTS = np.array([0.4, 0.0, 0.0, 0.3, 0.3, 0.0])

ragged = st.lists(st.integers(1, 6), min_size=1, max_size=10).map(lambda lengths: np.cumsum([0, *lengths]))


def flat_tokens(rows, offsets):
    """Token indices of the rows, by a plain loop."""
    return np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in rows])


@pytest.mark.parametrize("method", REWEIGHT_METHODS)
def test_round_zero_is_everything_once(method):
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    draw = draw_round(0, method, WEIGHTS, OFFSETS, rng)
    np.testing.assert_array_equal(draw.rows, [0, 1, 2])
    np.testing.assert_array_equal(draw.row_offsets, OFFSETS)
    np.testing.assert_array_equal(draw.loss_weights, np.ones(6))
    np.testing.assert_array_equal(draw.denominators, [2.0, 1.0, 3.0])
    assert not draw.out_of_bag.any()
    assert rng.bit_generator.state == before


def test_loss_scales_the_weights_to_average_one():
    draw = draw_round(1, "loss", WEIGHTS, OFFSETS, np.random.default_rng(0))
    np.testing.assert_allclose(draw.loss_weights, [2.4, 0.0, 0.0, 1.8, 1.8, 0.0])
    assert draw.loss_weights.sum() == pytest.approx(draw.denominators.sum())
    np.testing.assert_array_equal(draw.rows, [0, 1, 2])
    np.testing.assert_array_equal(draw.denominators, [2.0, 1.0, 3.0])
    assert not draw.out_of_bag.any()


def test_token_bootstrap_leaves_out_what_has_no_weight():
    draw = draw_round(1, "token_bootstrap", WEIGHTS, OFFSETS, np.random.default_rng(3))
    assert set(draw.rows) <= {0, 2}  # the second sample has no weight
    assert draw.out_of_bag[[1, 2, 5]].all()
    assert draw.loss_weights.sum() == 6


@given(ragged, st.integers(0, 200))
def test_token_bootstrap_regroups_the_counts(offsets, seed):
    weights = np.random.default_rng(seed).random(offsets[-1]) ** 4 + 1e-9
    draw = draw_round(2, "token_bootstrap", weights, offsets, np.random.default_rng(seed))
    counts = draw_token_bootstrap(weights, np.random.default_rng(seed))
    assert counts.sum() == offsets[-1]
    kept = [i for i in range(offsets.size - 1) if counts[offsets[i] : offsets[i + 1]].any()]
    np.testing.assert_array_equal(draw.rows, kept)
    np.testing.assert_array_equal(draw.loss_weights, counts[flat_tokens(kept, offsets)])
    np.testing.assert_array_equal(draw.row_offsets, np.cumsum([0, *np.diff(offsets)[kept]]))
    np.testing.assert_array_equal(
        draw.denominators, [counts[offsets[i] : offsets[i + 1]].sum() for i in kept]
    )
    np.testing.assert_array_equal(draw.out_of_bag, counts == 0)


@given(ragged, st.integers(0, 200), st.sampled_from(["mean", "sum"]))
def test_sample_bootstrap_repeats_the_samples(offsets, seed, how):
    weights = np.random.default_rng(seed).random(offsets[-1]) ** 4 + 1e-9
    draw = draw_round(1, "sample_bootstrap", weights, offsets, np.random.default_rng(seed), how)
    probs = sample_distribution(weights, offsets, how)
    counts = draw_sample_bootstrap(probs, np.random.default_rng(seed))
    lengths = np.diff(offsets)
    assert draw.rows.size == lengths.size
    np.testing.assert_array_equal(np.bincount(draw.rows, minlength=lengths.size), counts)
    assert (np.diff(draw.rows) >= 0).all()
    np.testing.assert_array_equal(draw.denominators, lengths[draw.rows])
    np.testing.assert_array_equal(draw.row_offsets, np.cumsum([0, *lengths[draw.rows]]))
    np.testing.assert_array_equal(draw.loss_weights, np.ones(draw.row_offsets[-1]))
    np.testing.assert_array_equal(draw.out_of_bag, np.repeat(counts == 0, lengths))


@pytest.mark.parametrize("draw", [draw_token_bootstrap, draw_sample_bootstrap])
def test_draws_follow_the_weights(draw):
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    rng = np.random.default_rng(0)
    counts = sum(draw(weights, rng) for _ in range(4000))
    assert counts.dtype.kind == "i"
    assert counts.sum() == 24_000
    assert (counts[[0, 3, 5]] == 0).all()
    # standard error of a share is below 0.0033
    np.testing.assert_allclose(counts / 24_000, weights / 10, atol=0.013)


def test_the_same_seed_gives_the_same_draw():
    weights = np.random.default_rng(1).random(6)
    first = draw_round(1, "token_bootstrap", weights, OFFSETS, np.random.default_rng(5))
    second = draw_round(1, "token_bootstrap", weights, OFFSETS, np.random.default_rng(5))
    np.testing.assert_array_equal(first.out_of_bag, second.out_of_bag)
    np.testing.assert_array_equal(first.loss_weights, second.loss_weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "bagging", WEIGHTS, OFFSETS), "token_bootstrap, sample_bootstrap, loss"),
        ((-1, "loss", WEIGHTS, OFFSETS), "at least 0"),
        ((1, "loss", WEIGHTS[:-1], OFFSETS), "end at the number of entries, 5"),
        ((1, "loss", -WEIGHTS, OFFSETS), "not negative"),
        ((1, "loss", WEIGHTS, [0, 3, 3, 6]), "row 1"),
    ],
)
def test_draw_round_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_round(*arguments, np.random.default_rng(0))


def test_draw_round_refuses_an_unknown_sample_weight():
    with pytest.raises(ValueError, match="mean, sum"):
        draw_round(1, "loss", WEIGHTS, OFFSETS, np.random.default_rng(0), "max")


@pytest.mark.parametrize(
    "weights",
    [
        # Blocks of 8: some without any mass, in the middle and at the end; entries without any in the others.
        [3, 0, 1, 0, 0, 2, 1, 1, *[0] * 8, 0, 4, 1, 0, 1, 0, 2, 0, *[0] * 8],
        [*[0] * 8, 1, 1, 1, 1, 0, 0, 0, 0, 5, 3, 0],
    ],
)
@pytest.mark.parametrize("block", [8, 2**17])
def test_draws_block_by_block_are_multinomial(weights, block, monkeypatch):
    monkeypatch.setattr(draws, "_BLOCK", block)
    p, n, repeats = np.array(weights) / sum(weights), len(weights), 4_000
    rng = np.random.default_rng(0)
    offsets = np.arange(n + 1)
    counts = np.zeros((repeats, n))
    for row in counts:
        draw = draw_round(1, "token_bootstrap", p, offsets, rng)
        row[draw.rows] = draw.loss_weights
    assert (counts.sum(axis=1) == n).all()
    # Standard errors of a mean and a covariance are below 0.04 and 0.13 for at most 6 expected draws.
    np.testing.assert_allclose(counts.mean(axis=0), n * p, atol=0.15)
    covariance = n * (np.diag(p) - np.outer(p, p))
    np.testing.assert_allclose(np.cov(counts.T), covariance, atol=0.5)
