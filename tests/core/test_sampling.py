"""Sampling from the vote: exact in distribution, and what is proven from few tokens is what the full row gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core.sampling import (
    SamplingParams,
    certified_head,
    draw_certified,
    draw_dense,
    draw_member,
    draw_token,
    head_of,
    ranked,
    uniforms,
)
from ensemw2s.core.voting import mixture, vote_bounds

PROBS = np.array([0.1, 0.4, 0.0, 0.3, 0.2])


def grid(n: int) -> np.ndarray:
    """n numbers in [0, 1), in the middles of n equal cells."""
    return (np.arange(n) + 0.5) / n


def shares(tokens: list[int], n_vocab: int) -> np.ndarray:
    return np.bincount(tokens, minlength=n_vocab) / len(tokens)


def test_draw_token_inverts_the_distribution_function() -> None:
    """Cumulated 0.1, 0.5, 0.5, 0.8, 1: by hand."""
    drawn = [draw_token(PROBS, u) for u in (0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.7999, 0.8001, 0.999999)]
    assert drawn == [0, 0, 1, 1, 3, 3, 4, 4]


def test_draw_token_never_takes_a_token_without_mass() -> None:
    almost_one = np.nextafter(1.0, 0.0)
    assert draw_token([0.0, 0.3, 0.0, 0.0], 0.0) == 1
    assert draw_token([0.1, 0.2, 0.0, 0.0], almost_one) == 1
    assert draw_token(np.float32([0.0, 1e-30, 0.0]), almost_one) == 1
    assert draw_dense(np.array([0.0, 0.5, 0.5, 0.0]), SamplingParams(2.0), almost_one) == 2


def test_a_member_then_its_token_is_the_mixture() -> None:
    """A whole grid of pairs of uniform numbers: shares are exact up to the grid's cells."""
    alphas = np.array([1.0, 0.0, 3.0])
    members = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.1, 0.2, 0.7]])
    tokens = [draw_token(members[draw_member(alphas, u)], v) for u in grid(100) for v in grid(200)]
    np.testing.assert_allclose(shares(tokens, 3), mixture(members, alphas), atol=0.005)


def test_temperature() -> None:
    """tau = 1/2 squares the probabilities, tau = 2 takes their roots."""
    for tau, power in ((0.5, 2.0), (2.0, 0.5)):
        expected = PROBS**power / (PROBS**power).sum()
        tokens = [draw_dense(PROBS, SamplingParams(tau), u) for u in grid(2000)]
        np.testing.assert_allclose(shares(tokens, 5), expected, atol=1e-3)


def test_top_p_keeps_the_shortest_prefix_that_holds_it() -> None:
    """In order 0.4, 0.3, 0.2, 0.1: 0.65 needs two tokens, 0.75 three, 0.05 one."""
    for top_p, kept in ((0.65, [1, 3]), (0.75, [1, 3, 4]), (0.05, [1])):
        expected = np.zeros(5)
        expected[kept] = PROBS[kept] / PROBS[kept].sum()
        tokens = [draw_dense(PROBS, SamplingParams(1.0, top_p), u) for u in grid(2000)]
        np.testing.assert_allclose(shares(tokens, 5), expected, atol=1e-3)


def test_ties_are_in_the_order_of_ids_in_a_large_vocabulary() -> None:
    flat = np.full(2000, 1 / 2000)
    tokens = [draw_dense(flat, SamplingParams(1.5), u) for u in grid(2000)[::9]]
    assert tokens == list(range(2000))[::9]
    assert draw_dense(flat, SamplingParams(0.1, 0.5), 0.9999) == 999


def test_very_low_temperatures_do_not_underflow() -> None:
    probs = np.full(100, 1e-3)
    probs[7] = 1 - 99e-3
    assert {draw_dense(probs, SamplingParams(0.001), u) for u in grid(50)} == {7}
    assert draw_certified(probs[7:8], 100, 1e-3, SamplingParams(0.001), 0.5) == 0


def test_head_of() -> None:
    ids, values = head_of(np.array([0.1, 0.3, 0.1, 0.3, 0.2]), 4)
    assert ids.tolist() == [1, 3, 4, 0, 2]  # the tie for the last place comes whole
    assert values.tolist() == [0.3, 0.3, 0.2, 0.1, 0.1]
    assert len(head_of(PROBS, 0)[0]) == 0
    assert head_of(PROBS, 9)[0].tolist() == [1, 3, 4, 0, 2]


def test_uniforms_depend_on_seed_and_step_alone() -> None:
    assert uniforms(3, 5) == uniforms(3, 5)
    values = {u for seed in (-1, 0, 2**100) for step in range(50) for u in uniforms(seed, step)}
    assert len(values) == 300
    assert min(values) >= 0
    assert max(values) < 1
    assert abs(np.mean([uniforms(1, step)[1] for step in range(4000)]) - 0.5) < 0.02


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    n_vocab=st.integers(2, 60),
    kept=st.integers(1, 60),
    sharpness=st.sampled_from([0.0, 0.5, 2.0, 6.0]),
    tau=st.sampled_from([0.05, 0.5, 0.9, 1.0, 1.3, 3.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
)
def test_a_proven_draw_is_the_draw_from_the_full_row(
    seed: int, n_vocab: int, kept: int, sharpness: float, tau: float, top_p: float
) -> None:
    rng = np.random.default_rng(seed)
    probs = np.exp(sharpness * rng.normal(size=n_vocab).round(1))
    probs /= probs.sum()
    ids, values = ranked(np.arange(n_vocab), probs)
    kept = min(kept, n_vocab)
    ceiling = values[kept] if kept < n_vocab else -np.inf
    while kept and values[kept - 1] <= ceiling:  # a head is strictly above the rest
        kept -= 1
    params = SamplingParams(tau, top_p)
    proven = 0
    for u in [*rng.random(20), 0.0, np.nextafter(1.0, 0.0)]:
        place = draw_certified(values[:kept], n_vocab, float(ceiling), params, float(u))
        if place is not None:
            proven += 1
            assert ids[place] == draw_dense(probs, params, float(u))
    if kept == n_vocab:
        assert proven >= 15  # only numbers at a boundary stay open


def test_certified_head_against_the_full_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        n_members, n_vocab, k = int(rng.integers(1, 4)), int(rng.integers(2, 12)), int(rng.integers(1, 5))
        k = min(k, n_vocab)
        probs = rng.dirichlet(np.full(n_vocab, 0.4), size=(n_members, 3)).astype(np.float32).round(2)
        ids = np.argsort(-probs, axis=2, kind="stable")
        sent = np.take_along_axis(probs, ids, 2)
        residual = sent[:, :, k] if k < n_vocab else np.zeros(sent.shape[:2])
        alphas = rng.random(n_members) + 0.1
        bounds = vote_bounds(ids[:, :, :k], sent[:, :, :k], alphas, n_vocab, residual=residual)
        head, ceiling = certified_head(bounds)
        dense = mixture(probs, alphas)
        for row in range(3):
            tokens = bounds.ids[row][head[row]]
            order = ranked(np.arange(n_vocab), dense[row])[0]
            assert sorted(tokens) == sorted(order[: len(tokens)])
            assert np.array_equal(bounds.value[row][head[row]], dense[row][tokens])
            rest = np.delete(dense[row], tokens)
            assert not len(rest) or rest.max() <= ceiling[row]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
    ],
)
def test_values_out_of_range(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**changes)
