"""The decision on one step's tokens, from what members sent to their whole rows, no further than needed.

A row is decided when its token is proven to be the one that the whole distributions would give, and the probabilities that
are reported are exactly known. What is open is tried again with the exact values of the candidates, then with
twice as many tokens, at last with the full rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemw2s.core.sampling import SamplingParams, certified_head, draw_certified, draw_dense, head_of, ranked
from ensemw2s.core.voting import VoteBounds, mixture, vote_bounds
from ensemw2s.engine.decoding.messages import Decision, MemberSay, Path
from ensemw2s.engine.tasks import TopK

#: Tokens of each member that are looked at first; most rows are certified by them, and a vote on few is fast.
FIRST_LOOK = 8

#: Most probabilities that are asked for at a time when whole rows are needed: 64 MiB.
MAX_DENSE_VALUES = 2**24

Ask = Callable[..., Sequence[Any]]
"""ask(method, rows, *arguments): the answers of the members, in order; rows are rows of this vote."""


@dataclass(frozen=True)
class Goal:
    """How one row's token is picked.

    Attributes:
        sampling: greedy, or how to draw.
        u: in [0, 1), decides the draw.
        top: how many of the most probable tokens are reported.
        drawn: the token that a member has drawn already, or None.
        exact: whether the probability must be exactly known; with `top` it is anyway.
    """

    sampling: SamplingParams
    u: float = 0.0
    top: int = 0
    drawn: int | None = None
    exact: bool = True

    @property
    def token_only(self) -> bool:
        """Nothing but the token is wanted."""
        return not self.exact and self.top == 0


@dataclass
class _Found:
    token: int
    probability: float
    top: tuple[tuple[int, float], ...]
    own: np.ndarray
    path: Path
    runner_up: float
    completed: bool


class StepVote:
    """The votes of the same T members on b rows.

    Args:
        says: what each member sent, (b, k) each.
        alphas: (T,) weights above 0.
        n_vocab: V.
        goals: one a row.
        ask: calls the members again.
        places: (T,) for the record, each member's place among all members, of which there are `n_members`.
    """

    def __init__(
        self,
        says: Sequence[TopK],
        alphas: np.ndarray,
        n_vocab: int,
        goals: Sequence[Goal],
        ask: Ask,
        *,
        places: Sequence[int],
        n_members: int,
    ) -> None:
        self._says, self._alphas, self._n_vocab, self._goals = says, alphas, n_vocab, goals
        self._ask, self._places, self._n_members = ask, places, n_members
        self._found: dict[int, _Found] = {}
        self._ids = np.stack([s.ids for s in says]).astype(np.int64)
        self._probs = np.stack([s.probs for s in says])
        self._residual = np.stack([s.residual for s in says])
        self._rows: list[int] = list(range(len(goals)))
        self._certified = np.zeros(len(goals), dtype=bool)

    def decide(self) -> list[Decision]:
        """One decision a row."""
        self._take_drawn()
        if not self._rows:
            return self._decisions()
        k = self._ids.shape[2]
        first = max(FIRST_LOOK, 2 * max((g.top for g in self._goals), default=0))
        if first < k:
            self._settle(self._bounds(first), "certified")
        if self._rows:
            bounds = self._bounds()
            self._certified[self._rows] = bounds.decide().certified
            self._settle(bounds, "certified")
        if self._rows:
            self._exact("candidates")
        # A nucleus that is not there yet is seldom there among twice as many tokens.
        self._full(np.array([not self._goals[row].sampling.greedy for row in self._rows], dtype=bool))
        if self._rows and 2 * k < self._n_vocab:
            self._wider(2 * k)
            self._exact("wider")
        self._full(np.ones(len(self._rows), dtype=bool))
        return self._decisions()

    def _take_drawn(self) -> None:
        """What members have drawn needs no vote, where its probability is not asked for."""
        taken = np.zeros(len(self._rows), dtype=bool)
        for row, goal in enumerate(self._goals):
            if goal.drawn is not None and goal.token_only:
                own = np.where(self._ids[:, row] == goal.drawn, self._probs[:, row], 0).sum(axis=1)
                value = float(self._alphas @ own / self._alphas.sum())
                self._keep(row, goal.drawn, value, (), own, "drawn", 1.0)
                taken[row] = True
        if taken.any():
            self._leave(~taken)

    # -- the stages ------------------------------------------------------------------------------------------

    def _exact(self, path: Path) -> None:
        """Ask for the exact values of the candidates of the open rows."""
        if not self._rows:
            return
        bounds = self._bounds()
        wanted = (bounds.ids >= 0) & ~bounds.known
        rivals = bounds.rivals()
        rivals[np.arange(len(rivals)), bounds.best()] = True
        lists = []
        for i, row in enumerate(self._rows):
            goal = self._goals[row]
            only = wanted[i]
            if goal.sampling.greedy and goal.top <= 1:
                only = wanted[i] & (rivals[i] | (bounds.ids[i] == goal.drawn))
            extra = bounds.ids[i][only].tolist()
            if goal.drawn is not None and goal.drawn not in bounds.ids[i]:
                extra.append(goal.drawn)
            lists.append(extra)
        width = max(len(extra) for extra in lists)
        if width == 0:
            return
        asked = np.zeros((len(lists), width), dtype=np.int32)
        real = np.zeros_like(asked, dtype=bool)
        for i, extra in enumerate(lists):
            asked[i, : len(extra)], real[i, : len(extra)] = extra, True
        values = np.stack(self._ask("decode_exact", self._rows, asked))
        self._add(np.where(real, asked, -1), values)
        self._settle(self._bounds(), path)

    def _wider(self, k: int) -> None:
        says = self._ask("decode_more", self._rows, k)
        known_ids, known_probs = self._ids, self._probs
        self._ids = np.stack([s.ids for s in says]).astype(np.int64)
        self._probs = np.stack([s.probs for s in says])
        self._residual = np.stack([s.residual for s in says])
        self._merge(known_ids, known_probs)
        self._settle(self._bounds(), "wider")

    def _full(self, which: np.ndarray) -> None:
        """Decide some of the open rows, (n,) bool, by their whole distributions."""
        rows = [row for row, chosen in zip(self._rows, which, strict=True) if chosen]
        size = max(1, MAX_DENSE_VALUES // (len(self._says) * self._n_vocab))
        for part in (rows[i : i + size] for i in range(0, len(rows), size)):
            whole = np.stack(self._ask("decode_full", part))
            dense = mixture(whole, self._alphas)
            for i, row in enumerate(part):
                goal, probs = self._goals[row], dense[i]
                if goal.drawn is not None:
                    token = goal.drawn
                elif goal.sampling.greedy:
                    token = int(probs.argmax())
                else:
                    token = draw_dense(probs, goal.sampling, goal.u)
                top = _pairs(*head_of(probs, goal.top), goal.top)
                others = np.delete(probs, token).max(initial=0.0)
                self._keep(row, token, float(probs[token]), top, whole[:, i, token], "full", float(others))
        if rows:
            self._leave(~which)

    # -- what is known ---------------------------------------------------------------------------------------

    def _bounds(self, first: int | None = None) -> VoteBounds:
        """Bounds from all that is known, or from the `first` tokens that each member sent."""
        ids, probs, residual = self._ids, self._probs, self._residual
        if first is not None:
            ids, probs, residual = ids[:, :, :first], probs[:, :, :first], probs[:, :, first]
        return vote_bounds(ids, probs, self._alphas, self._n_vocab, residual=residual)

    def _add(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Tokens (b, m), -1 where there is none, whose probabilities (T, b, m) are now known of every member."""
        self._merge(np.broadcast_to(ids, values.shape), values)

    def _merge(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Tokens (T, b, m) of each member; those that it has sent before are left out."""
        repeated = (ids[..., :, None] == self._ids[..., None, :]).any(axis=-1)
        fresh = np.where(repeated, -1, ids)
        self._ids = np.concatenate([self._ids, fresh], axis=2)
        self._probs = np.concatenate([self._probs, np.where(fresh < 0, 0, values)], axis=2)

    def _settle(self, bounds: VoteBounds, path: Path) -> None:
        """Take out of the open rows those that these bounds decide."""
        head, ceiling = certified_head(bounds)
        slots = bounds.best()
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(slots)
        every = np.arange(len(slots))
        decided = head[every, slots]
        if any(self._goals[row].token_only for row in self._rows):
            certain = bounds.decide().certified
            decided |= certain & np.array([self._goals[row].token_only for row in self._rows])
        for i, row in enumerate(self._rows):
            goal = self._goals[row]
            if goal.top or goal.drawn is not None or not goal.sampling.greedy:
                chosen, tops[i] = self._pick(bounds, head[i], float(ceiling[i]), i, goal)
                decided[i], slots[i] = chosen is not None, chosen or 0
        tokens, values = bounds.ids[every, slots], bounds.value[every, slots]
        own = np.where(self._ids == tokens[:, None], self._probs, 0).sum(axis=2)
        others = np.where(bounds.ids >= 0, bounds.high, 0.0)
        others[every, slots] = 0.0
        runners_up = np.maximum(others.max(axis=1), np.maximum(bounds.unseen, 0.0))
        for i in np.flatnonzero(decided).tolist():
            self._keep(
                self._rows[i],
                int(tokens[i]),
                float(values[i]),
                tops[i],
                own[:, i],
                path,
                float(runners_up[i]),
            )
        if decided.any():
            self._leave(~decided)

    def _leave(self, still_open: np.ndarray) -> None:
        self._rows = [row for row, kept in zip(self._rows, still_open, strict=True) if kept]
        self._ids, self._probs = self._ids[:, still_open], self._probs[:, still_open]
        self._residual = self._residual[:, still_open]

    def _pick(
        self, bounds: VoteBounds, head: np.ndarray, ceiling: float, i: int, goal: Goal
    ) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        """The slot of the token, None where it is open, and the most probable tokens."""
        slots = np.flatnonzero(head)
        ids, values = ranked(bounds.ids[i][slots], bounds.value[i][slots])
        if len(ids) < min(goal.top if goal.drawn is not None else max(1, goal.top), self._n_vocab):
            return None, ()
        top = _pairs(ids, values, goal.top)
        token: int | None
        if goal.drawn is not None:
            token = goal.drawn
        elif goal.sampling.greedy:
            token = int(ids[0])
        else:
            place = draw_certified(values, self._n_vocab, ceiling, goal.sampling, goal.u)
            token = None if place is None else int(ids[place])
        if token is None:
            return None, top
        found = np.flatnonzero((bounds.ids[i] == token) & bounds.known[i])
        return (int(found[0]) if len(found) else None), top

    # -- the record ------------------------------------------------------------------------------------------

    def _keep(
        self,
        row: int,
        token: int,
        probability: float,
        top: tuple[tuple[int, float], ...],
        own: np.ndarray,
        path: Path,
        runner_up: float,
    ) -> None:
        goal = self._goals[row]
        if goal.drawn is not None:
            path = "drawn"
        # The token was certain; the further question was for probabilities.
        completed = path not in ("certified", "drawn") and goal.sampling.greedy and bool(self._certified[row])
        if completed:
            path = "certified"
        self._found[row] = _Found(token, probability, top, own, path, runner_up, completed)

    def _decisions(self) -> list[Decision]:
        most = max(1, max(g.top for g in self._goals))
        tokens = [s.ids[:, :most].tolist() for s in self._says]
        probs = [s.probs[:, :most].tolist() for s in self._says]
        decisions = []
        for row, goal in enumerate(self._goals):
            found, n = self._found[row], max(1, goal.top)
            members: list[MemberSay | None] = [None] * self._n_members
            for t, place in enumerate(self._places):
                members[place] = MemberSay(
                    tuple(tokens[t][row][:n]), tuple(probs[t][row][:n]), float(found.own[t])
                )
            decisions.append(
                Decision(
                    found.token,
                    found.probability,
                    found.path,
                    found.top,
                    tuple(members),
                    found.runner_up,
                    found.completed,
                )
            )
        return decisions


def _pairs(ids: np.ndarray, values: np.ndarray, n: int) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids[:n].tolist(), values[:n].tolist(), strict=True))
