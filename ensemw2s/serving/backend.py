"""The voting side behind the HTTP side: models of a run, wherever their members are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from ensemw2s.data.samples import Sample
from ensemw2s.engine.decoding.messages import Decision, DecodeRequest
from ensemw2s.errors import WorkerFailure
from ensemw2s.serving.loop import VoteLoop
from ensemw2s.serving.members import Members, Part
from ensemw2s.serving.opening import OpenedRun
from ensemw2s.serving.protocol import Health, LabelResult, ServedModel, Sink, TextScores, Unavailable
from ensemw2s.serving.rows import collect_rows
from ensemw2s.serving.settings import ServeSettings
from ensemw2s.serving.voter import Voter

T = TypeVar("T")
RETRY_SECONDS = 0.2
LABEL_CHOICES = 128
"""choices that are scored between two decode steps"""
LABEL_CHARACTERS = 2**18
"""characters that are read for them, each choice with its question"""
_LOG = logging.getLogger(__name__)


class VoteBackend:
    """Implements :class:`ensemw2s.serving.protocol.Backend`.

    Args:
        run: what is served.
        members: the supervisors, one slot for each of ``run.refs``.
        settings: limits, quorum.

    Raises:
        UserError: a quorum larger than the ensemble.
    """

    def __init__(self, run: OpenedRun, members: Members, settings: ServeSettings) -> None:
        run.check_quorum(settings.quorum)
        self._run, self._members, self._settings = run, members, settings
        self._voters = {
            name: Voter(
                name,
                run.ctx,
                ensemble,
                Part(members, run.slots(name)),
                quorum=settings.quorum,
                created=run.created,
                max_rows=settings.max_decoding_rows,
                batch_tokens=settings.max_decoding_tokens,
            )
            for name, ensemble in run.ensembles.items()
        }
        self._models = {name: voter.model for name, voter in self._voters.items()}
        for name, model in self._models.items():
            if model.unanswerable is not None:
                _LOG.warning("%s: %s", name, model.unanswerable)
        members.on_return(self._returned)
        self._loop = VoteLoop(self._voters, settings.member_seconds)

    @property
    def run(self) -> OpenedRun:
        """The run that is served."""
        return self._run

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served."""
        return self._models

    def start(self, model: str, request: DecodeRequest, sink: Sink) -> int:
        """Begin to continue a text."""
        return self._loop.start(model, request, sink)

    def cancel(self, handle: int) -> None:
        """Forget it and free its row."""
        self._loop.cancel(handle)

    async def score(self, model: str, texts: Sequence[np.ndarray], top: int) -> list[TextScores]:
        """Voted scores of given texts; decode steps go on between their batches."""
        voter = self._voters[model]
        found: list[TextScores | None] = [None] * len(texts)
        long = [i for i, t in enumerate(texts) if len(t) > 1]
        for group in voter.text_batches([texts[i] for i in long]):
            rows = [long[g] for g in group]
            scores = await self._retried(voter, partial(voter.score, [texts[i] for i in rows], top))
            for i, score in zip(rows, scores, strict=True):
                found[i] = score
        # A text of one token has nothing to score.
        return [f or TextScores(np.zeros(0), [], len(voter.alive)) for f in found]

    async def judge(
        self,
        model: str,
        prompt: np.ndarray,
        tokens: Sequence[int],
        *,
        forced: int,
        top: int,
        weights: tuple[float, ...] | None,
    ) -> list[Decision]:
        """The votes at the places of given tokens, between two decode steps."""
        voter = self._voters[model]
        work = partial(voter.judge, prompt, tokens, forced=forced, top=top, weights=weights)
        return await self._retried(voter, work)

    async def label(
        self, model: str, samples: Sequence[Sample], weights: tuple[float, ...] | None = None
    ) -> list[LabelResult]:
        """Choose, or generate with the run's own stop strings and length."""
        voter = self._voters[model]
        results: dict[int, LabelResult] = {}
        choosing = [i for i, s in enumerate(samples) if s.choices is not None]
        for group in label_batches([samples[i] for i in choosing]):
            rows = [choosing[place] for place in group]
            chosen = await self._retried(voter, partial(voter.choose, [samples[i] for i in rows], weights))
            results.update(zip(rows, chosen, strict=True))
        free = [i for i in range(len(samples)) if i not in results]
        if free:
            prompts = await self._retried(voter, partial(voter.prompts, [samples[i] for i in free]))
            results.update(zip(free, await self._generate(voter, prompts, weights), strict=True))
        return [results[i] for i in range(len(samples))]

    async def _generate(
        self, voter: Voter, prompts: list[np.ndarray], weights: tuple[float, ...] | None
    ) -> list[LabelResult]:
        vote = self._run.ctx.config.vote
        requests = [
            DecodeRequest(p, vote.max_new_tokens, vote.stop, weights=weights, stop_after_text=True)
            for p in prompts
        ]
        answers = await collect_rows(self, voter.model.name, requests, lambda: None)
        return [
            LabelResult(
                choice=None,
                text=answer.text.strip(),
                confidence=float(np.prod([s.decision.probability for s in answer.steps])),
                scores=(),
                votes=None,
                tokens=len(prompt),
                voters=answer.voters or 0,
                spoken=len(answer.steps),
            )
            for answer, prompt in zip(answers, prompts, strict=True)
        ]

    async def _retried(self, voter: Voter, work: Callable[[], T]) -> T:
        """Work that members lose nothing by doing twice: tried again when one of them fails."""
        deadline = time.monotonic() + self._settings.member_seconds
        while True:
            try:
                result: T = await asyncio.wrap_future(self._loop.call(work))
                return result
            except WorkerFailure as error:
                if time.monotonic() > deadline:
                    alive, total = len(voter.alive), len(voter.model.members)
                    raise Unavailable(
                        f"{alive} of {total} members are alive, {voter.needed} are needed; try again later"
                    ) from error
                await asyncio.sleep(RETRY_SECONDS)

    def health(self) -> Health:
        """Who is alive."""
        members = {n: (len(v.alive), len(v.model.members)) for n, v in self._voters.items()}
        ok = all(len(v.alive) >= v.needed for v in self._voters.values())
        return Health(ok, members, self._loop.rows)

    def _returned(self, slot: int) -> None:
        for voter in self._voters.values():
            voter.returned(slot)

    async def close(self, seconds: float) -> None:
        """Drain and end."""
        try:
            await asyncio.to_thread(self._loop.close, seconds)
        finally:
            self._members.close()


def label_batches(samples: Sequence[Sample]) -> Iterator[range]:
    """Places of questions with choices that are scored together, one question at least.

    Every choice is read behind its question: what counts is how many there are and how much is read.
    """
    begin = choices = characters = 0
    for place, sample in enumerate(samples):
        given = sample.choices or ()
        more = len(given) * len(sample.question) + sum(len(choice) for choice in given)
        if place > begin and (choices + len(given) > LABEL_CHOICES or characters + more > LABEL_CHARACTERS):
            yield range(begin, place)
            begin, choices, characters = place, 0, 0
        choices, characters = choices + len(given), characters + more
    if samples:
        yield range(begin, len(samples))


def local_backend(run: OpenedRun, settings: ServeSettings, threads: int | None = None) -> VoteBackend:
    """All members in this process, with the run's own number of torch threads unless one is given."""
    import os

    from ensemw2s.serving.members import LocalMembers

    own = run.ctx.config.runtime.threads
    count = threads or ((os.cpu_count() or 1) if own == "auto" else own)
    members = LocalMembers(run.ctx.config, run.ctx.run_dir, threads=count, refs=run.refs)
    return VoteBackend(run, members, settings)
