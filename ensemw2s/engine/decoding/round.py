"""One decision of all members: who is asked, who has lost its rows, and who is left out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ensemw2s.core.sampling import draw_member, uniforms
from ensemw2s.engine.decoding.members import MemberLink, Running, wait_for_end
from ensemw2s.engine.decoding.messages import Decision, DecodeCounts, MemberFacts, MemberReply
from ensemw2s.engine.decoding.vote import Goal, StepVote
from ensemw2s.engine.decoding.worker import SessionLost
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef, TopK
from ensemw2s.errors import ModelError, WorkerFailure

#: Restarts of members that one step survives.
MAX_LOSSES = 8


class NoVoter(WorkerFailure):
    """No member that votes on some requests is left; the vote on the others goes on without them.

    Attributes:
        requests: their ids.
    """

    def __init__(self, requests: Sequence[int]) -> None:
        super().__init__("no member that votes on this request is left")
        self.requests = tuple(requests)


class Members:
    """The members of a vote, kept in step.

    Args:
        pool: who calls them; member m is called on slot m.
        refs: the voting models.
        top_k: tokens that each sends for each row.
        quorum: how many must be left for the others to go on without one that failed for good; None: never.
        counts: calls and tokens are added here.
    """

    def __init__(
        self,
        pool: SupervisorPool,
        refs: Sequence[ModelRef | Hashable],
        *,
        top_k: int,
        quorum: int | None,
        counts: DecodeCounts,
    ) -> None:
        self._links = [MemberLink(pool, slot, ref) for slot, ref in enumerate(refs)]
        self._k, self._quorum, self._counts = top_k, quorum, counts
        self._facts: MemberFacts | None = None
        self._active: Mapping[int, Running] = {}
        self._drafts: Mapping[int, Sequence[int]] = {}
        self.absent: set[int] = set()

    def facts(self) -> MemberFacts:
        """The members' common vocabulary and limits; asks them once.

        Raises:
            ModelError: members of different vocabularies.
        """
        if self._facts is not None:
            return self._facts
        calls = [link.call("decode_facts") for link in self._links]
        facts: list[MemberFacts] = [call.result() for call in calls]
        sizes = {f.vocab_size for f in facts}
        if len(sizes) > 1:
            raise ModelError(
                f"members with vocabularies of {sorted(sizes)} tokens cannot vote together: use models of one tokenizer"
            )
        limits = [f.max_positions for f in facts if f.max_positions is not None]
        self._facts = MemberFacts(
            sizes.pop(),
            min(limits) if limits else None,
            all(f.can_enter for f in facts),
            max(f.rounding for f in facts),
        )
        return self._facts

    def forget(self) -> None:
        """Their rows are in doubt: the next step begins from the texts."""
        for link in self._links:
            link.forget()

    def end(self) -> None:
        """Free their rows."""
        wait_for_end([link.end() for m, link in enumerate(self._links) if m not in self.absent])

    def decide(
        self, active: Mapping[int, Running], drafts: Mapping[int, Sequence[int]]
    ) -> dict[int, list[Decision]]:
        """The vote on the next tokens of all running requests; members that lost their rows get them again.

        Args:
            active: the requests.
            drafts: tokens that may come next, of greedy requests.

        Returns:
            the next token, and further ones as far as the drafted tokens before them were voted.

        Raises:
            WorkerFailure: a member failed for good and too few are left.
            NoVoter: no member that votes on some request is left.
        """
        self._active, self._drafts = active, drafts
        replies: dict[int, tuple[MemberReply, dict[int, int]]] = {}
        for _ in range(MAX_LOSSES):
            try:
                self._hear(replies)
                return self._vote(replies)
            except _Lost as lost:
                self._counts.losses += 1
                self._links[lost.member].forget()
                replies.pop(lost.member, None)
                if lost.for_good:
                    self._go_on_without(lost)
        raise WorkerFailure(
            f"members lost their decode {MAX_LOSSES} times in one step; run the same command to continue"
        )

    def _go_on_without(self, lost: _Lost) -> None:
        left = len(self._links) - len(self.absent) - 1
        if self._quorum is None or left < max(1, self._quorum):
            raise lost.cause
        self.absent.add(lost.member)

    def _weights(self, running: Running) -> np.ndarray:
        weights = running.weights.copy()
        weights[list(self.absent)] = 0.0
        return weights

    def _hear(self, replies: dict[int, tuple[MemberReply, dict[int, int]]]) -> None:
        """One call to every member that has not replied yet; all have been made when the first is waited for."""
        weights = {i: self._weights(r) for i, r in self._active.items()}
        silent = [i for i, own in weights.items() if own.sum() == 0]
        if silent:
            raise NoVoter(silent)
        draws = self._draws_of(weights)
        calls = []
        for m, link in enumerate(self._links):
            wanted = {i: r for i, r in self._active.items() if weights[i][m] > 0}
            if m in replies or m in self.absent:
                continue
            if wanted:
                call, read = link.step(wanted, self._k, draws[m], self._drafts)
                calls.append((m, call))
                self._counts.forwarded += read
            else:
                wait_for_end([link.end()])
        failures: list[tuple[int, Exception]] = []
        for m, call in calls:
            try:
                reply: MemberReply = call.result()
                replies[m] = (reply, self._links[m].drawn(reply, draws[m]))
            except Exception as error:
                self._links[m].forget()
                failures.append((m, error))
        for m, failure in failures:
            if isinstance(failure, WorkerFailure):
                raise _Lost(m, failure) from failure
            raise failure

    def _draws_of(self, weights: Mapping[int, np.ndarray]) -> list[dict[int, float]]:
        """For each member the requests of which it draws the token, with the number that decides it."""
        draws: list[dict[int, float]] = [{} for _ in self._links]
        for i, running in self._active.items():
            sampling = running.request.sampling
            if sampling.plain:
                first, second = uniforms(sampling.seed, len(running.tokens))
                draws[draw_member(weights[i], first)][i] = second
        return draws

    def _vote(self, replies: Mapping[int, tuple[MemberReply, dict[int, int]]]) -> dict[int, list[Decision]]:
        groups: dict[tuple[float, ...], list[int]] = {}
        for i, running in self._active.items():
            groups.setdefault(tuple(self._weights(running)), []).append(i)
        drawn = {i: token for _, tokens in replies.values() for i, token in tokens.items()}
        decisions: dict[int, list[Decision]] = {i: [] for i in self._active}
        for weights, ids in groups.items():
            voters = [m for m, weight in enumerate(weights) if weight > 0]
            # A member that has lost its rows reads the texts again, without drafts.
            wanted = [(i, n) for i in ids for n in range(min(self._links[m].count(i) for m in voters))]
            rows = {m: self._links[m].places(wanted) for m in voters}
            vote = StepVote(
                [_select(replies[m][0].top, rows[m]) for m in voters],
                np.array([weights[m] for m in voters]),
                self.facts().vocab_size,
                [self._goal(self._active[i], drawn.get(i)) for i, _ in wanted],
                lambda method, open_rows, *args, voters=voters, rows=rows: self._ask(
                    method, {m: rows[m][open_rows] for m in voters}, *args
                ),
                places=voters,
                n_members=len(self._links),
            )
            for (i, n), decision in zip(wanted, vote.decide(), strict=True):
                before = [d.token for d in decisions[i]]
                if before == list(self._drafts.get(i, ()))[:n]:
                    decisions[i].append(decision)
        return decisions

    def _goal(self, running: Running, drawn: int | None) -> Goal:
        sampling = running.request.sampling
        u = 0.0 if sampling.greedy else uniforms(sampling.seed, len(running.tokens))[1]
        return Goal(sampling, u, running.request.top_logprobs, drawn, running.request.exact)

    def _ask(self, method: str, rows: Mapping[int, np.ndarray], *args: Any) -> list[Any]:
        """A further question to members about some of their rows."""
        self._counts.extra_calls += len(rows)
        calls = [(m, self._links[m].call(method, member_rows, *args)) for m, member_rows in rows.items()]
        answers = []
        for m, call in calls:
            try:
                answers.append(call.result())
            except WorkerFailure as error:
                raise _Lost(m, error) from error
        return answers


class _Lost(Exception):
    """A member failed; `for_good` where it does not hold its rows for another reason than a restart."""

    def __init__(self, member: int, cause: WorkerFailure) -> None:
        super().__init__(member)
        self.member, self.cause = member, cause

    @property
    def for_good(self) -> bool:
        return not isinstance(self.cause, SessionLost)


def _select(top: TopK, rows: np.ndarray) -> TopK:
    return TopK(top.ids[rows], top.probs[rows], top.residual[rows])
