"""The decision from few tokens against the decision from whole distributions, on easy and on nasty ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemw2s.core.sampling import SamplingParams, draw_dense, ranked
from ensemw2s.core.voting import mixture
from ensemw2s.engine.decoding.vote import Goal, StepVote
from ensemw2s.engine.tasks import TopK

GREEDY = SamplingParams()


class Members:
    """Whole distributions (T, b, V) that answer like members, and what they were asked."""

    def __init__(self, probs: np.ndarray) -> None:
        self.probs = probs.astype(np.float32)
        self.asked: list[tuple[str, int]] = []

    def top(self, t: int, rows: np.ndarray, k: int) -> TopK:
        probs = self.probs[t, rows]
        order = np.argsort(-probs, axis=1, kind="stable")
        values = np.take_along_axis(probs, order, 1)
        residual = values[:, k] if k < probs.shape[1] else np.zeros_like(values[:, 0])
        return TopK(order[:, :k].astype(np.int32), values[:, :k], residual)

    def ask(self, method: str, rows: np.ndarray, *args: Any) -> list[Any]:
        self.asked.append((method, len(rows)))
        members = range(len(self.probs))
        if method == "decode_exact":
            return [np.take_along_axis(self.probs[t, rows], args[0].astype(int), 1) for t in members]
        if method == "decode_more":
            return [self.top(t, rows, args[0]) for t in members]
        return [self.probs[t, rows] for t in members]

    def vote(self, k: int, alphas: np.ndarray, goals: list[Goal]) -> list[Any]:
        n_members, n_rows, n_vocab = self.probs.shape
        says = [self.top(t, np.arange(n_rows), min(k, n_vocab)) for t in range(n_members)]
        places = range(1, n_members + 1)
        return StepVote(
            says, alphas, n_vocab, goals, self.ask, places=places, n_members=n_members + 1
        ).decide()


def distributions(
    kind: str, n_members: int, n_rows: int, n_vocab: int, rng: np.random.Generator
) -> np.ndarray:
    if kind == "flat":
        return np.full((n_members, n_rows, n_vocab), 1 / n_vocab)
    if kind == "ties":
        steps = rng.integers(1, 4, (n_members, n_rows, n_vocab)).astype(float)
        return steps / steps.sum(axis=2, keepdims=True)
    if kind == "opposed":  # every member is sure of something else, all agree on the second
        probs = np.full((n_members, n_rows, n_vocab), 0.1 / n_vocab)
        probs[:, :, 0] += 0.4
        for t in range(n_members):
            probs[t, :, 1 + t % (n_vocab - 1)] += 0.5
        return probs
    return rng.dirichlet(np.full(n_vocab, 0.1 if kind == "peaked" else 1.0), (n_members, n_rows))


@pytest.mark.parametrize("kind", ["peaked", "random", "flat", "ties", "opposed"])
@pytest.mark.parametrize("k", [1, 3, 9, 40])
def test_greedy_and_its_record_equal_the_dense_vote(kind: str, k: int) -> None:
    rng = np.random.default_rng(k)
    members = Members(distributions(kind, 3, 12, 40, rng))
    alphas = np.array([0.5, 1.7, 1.0])
    goals = [Goal(GREEDY, top=n % 5) for n in range(12)]
    dense = mixture(members.probs, alphas)
    for row, decision in enumerate(members.vote(k, alphas, goals)):
        order, values = ranked(np.arange(40), dense[row])
        assert decision.token == order[0]
        assert decision.probability == pytest.approx(values[0], rel=1e-12)
        assert [t for t, _ in decision.top] == order[: row % 5].tolist()
        assert [p for _, p in decision.top] == pytest.approx(values[: row % 5].tolist(), rel=1e-12)
        assert decision.members[0] is None  # a member that has no vote
        for t, say in enumerate(decision.members[1:]):
            assert say.voted == members.probs[t, row, decision.token]
            assert say.tokens[0] == members.probs[t, row].argmax()


@pytest.mark.parametrize("params", [SamplingParams(0.6, 0.9), SamplingParams(1.0, 0.5), SamplingParams(1.5)])
@pytest.mark.parametrize("k", [2, 40])
def test_draws_equal_draws_from_the_dense_vote(params: SamplingParams, k: int) -> None:
    rng = np.random.default_rng(7)
    members = Members(distributions("peaked", 2, 40, 40, rng))
    alphas = np.array([2.0, 1.0])
    goals = [Goal(params, float(rng.random()), top=2) for _ in range(40)]
    dense = mixture(members.probs, alphas)
    decisions = members.vote(k, alphas, goals)
    for row, decision in enumerate(decisions):
        assert decision.token == draw_dense(dense[row], params, goals[row].u)
        assert decision.probability == pytest.approx(dense[row, decision.token], rel=1e-12)
    if k == 40:
        assert not members.asked


def test_a_drawn_token_gets_its_probability() -> None:
    members = Members(distributions("peaked", 2, 6, 30, np.random.default_rng(1)))
    goals = [Goal(SamplingParams(1.0), 0.3, drawn=5 * row) for row in range(6)]
    decisions = members.vote(2, np.ones(2), goals)
    dense = mixture(members.probs, np.ones(2))
    assert [d.token for d in decisions] == [0, 5, 10, 15, 20, 25]
    assert {d.path for d in decisions} == {"drawn"}
    assert [d.probability for d in decisions] == pytest.approx([dense[r, 5 * r] for r in range(6)], rel=1e-12)


def test_a_given_token_is_asked_for_by_itself() -> None:
    """Scores of given texts: the token's own probability, not the best one's, and no whole rows for it."""
    members = Members(distributions("peaked", 2, 8, 30, np.random.default_rng(2)))
    dense = mixture(members.probs, np.ones(2))
    # The second token of the first member, which the other one did not send.
    tokens = [int(members.top(0, np.array([row]), 2).ids[0, 1]) for row in range(8)]
    for top in (0, 1):
        members.asked.clear()
        goals = [Goal(GREEDY, top=top, drawn=token) for token in tokens]
        decisions = members.vote(2, np.ones(2), goals)
        assert [d.token for d in decisions] == tokens
        expected = [dense[row, token] for row, token in enumerate(tokens)]
        assert [d.probability for d in decisions] == pytest.approx(expected, rel=1e-12)
        assert "decode_full" not in [method for method, _ in members.asked]


def test_each_path() -> None:
    """By hand, V = 12, k = 2, alphas 1: where the answer is found."""
    v = 12

    def row(**at: float) -> np.ndarray:
        probs = np.zeros(v)
        for token, p in at.items():
            probs[int(token[1:])] = p
        probs[probs == 0] = (1 - probs.sum()) / (probs == 0).sum()
        return probs

    # Both are sure of token 3.
    certain = (row(t3=0.9, t4=0.05), row(t3=0.8, t5=0.1))
    # Two hopefuls that the other one did not send: 6 has 0.4 + 0.14, 7 has 0.36 + 0.01.
    candidates = (row(t6=0.4, t8=0.3, t7=0.01), row(t7=0.36, t9=0.3, t6=0.14, t1=0.13))
    # Token 2 is third with both and wins: 0.28 + 0.28 against at most 0.30 + 0.05.
    wider = (row(t4=0.30, t5=0.29, t2=0.28, t6=0.05), row(t7=0.30, t8=0.29, t2=0.28, t6=0.05))
    flat = (np.full(v, 1 / v), np.full(v, 1 / v))
    members = Members(np.stack([np.stack(pair) for pair in (certain, candidates, wider, flat)], axis=1))
    decisions = members.vote(2, np.ones(2), [Goal(GREEDY)] * 4)
    assert [(d.token, d.path) for d in decisions] == [
        (3, "certified"),
        (6, "candidates"),
        (2, "wider"),
        (0, "full"),
    ]
    assert members.asked[0] == ("decode_exact", 3)
    assert members.asked[-1] == ("decode_full", 1)


def test_a_certain_token_that_one_member_did_not_send_is_certified_and_asked_for() -> None:
    probs = np.full((2, 1, 10), 0.01)
    probs[0, 0, 4] = 0.91
    probs[1, 0, 5:8] = 0.31
    members = Members(probs)
    (decision,) = members.vote(2, np.array([5.0, 1.0]), [Goal(GREEDY)])
    assert (decision.token, decision.path, decision.completed) == (4, "certified", True)
    assert decision.probability == pytest.approx((5 * 0.91 + 0.01) / 6, rel=1e-6)
    assert [m for m, _ in members.asked] == ["decode_exact"]
    # Who wants the token alone asks nobody, and has a bound from below.
    members = Members(probs)
    (decision,) = members.vote(2, np.array([5.0, 1.0]), [Goal(GREEDY, exact=False)])
    assert (decision.token, decision.path, decision.completed) == (4, "certified", False)
    assert decision.probability == pytest.approx(5 * 0.91 / 6, rel=1e-6)
    assert members.asked == []


def test_a_drawn_token_that_is_all_that_is_wanted_asks_nobody() -> None:
    probs = np.full((2, 2, 10), 0.01)
    probs[0, :, 4] = 0.91
    probs[1, :, 5:8] = 0.31
    members = Members(probs)
    goals = [Goal(SamplingParams(1.0), 0.3, drawn=drawn, exact=False) for drawn in (4, 9)]
    decisions = members.vote(1, np.array([5.0, 1.0]), goals)
    assert [(d.token, d.path) for d in decisions] == [(4, "drawn"), (9, "drawn")]
    assert [d.probability for d in decisions] == pytest.approx([5 * 0.91 / 6, 0.0])
    assert members.asked == []


@pytest.mark.parametrize("kind", ["flat", "ties", "opposed"])
@pytest.mark.parametrize("k", [1, 3, 16])
def test_tokens_alone_are_those_of_the_dense_vote(kind: str, k: int) -> None:
    rng = np.random.default_rng(k)
    alphas = np.array([1.0, 0.7, 0.4])
    probs = distributions(kind, 3, 12, 16, rng)
    asking, quiet = Members(probs), Members(probs)
    exact = asking.vote(k, alphas, [Goal(GREEDY)] * 12)
    tokens = quiet.vote(k, alphas, [Goal(GREEDY, exact=False)] * 12)
    assert [d.token for d in tokens] == [d.token for d in exact]
    dense = mixture(asking.probs, alphas)
    assert [d.token for d in exact] == dense.argmax(axis=1).tolist()
    assert all(a.probability <= b.probability for a, b in zip(tokens, exact, strict=True))
    assert sum(n for _, n in quiet.asked) <= sum(n for _, n in asking.asked)
