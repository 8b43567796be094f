"""One served model: its members' votes on tokens, on given texts and on choices. Called from one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.data.samples import Sample
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import Decision
from ensemw2s.engine.decoding.vote import Goal, StepVote
from ensemw2s.engine.encoded import EncodedSplits
from ensemw2s.engine.tasks import TopK
from ensemw2s.engine.votes import answer_choices, vote
from ensemw2s.errors import WorkerFailure
from ensemw2s.models.scoring import MAX_HEAD_VALUES
from ensemw2s.serving.members import Part
from ensemw2s.serving.protocol import LabelResult, ServedModel, TextScores

#: Label models without truth: fitted to the very questions that they label.
FITTED_TO_QUESTIONS = ("dawid_skene", "glad")


class Voter:
    """The members of one model.

    Loads the weights of all members when it is made.

    Args:
        name: of the model.
        ctx: the run.
        ensemble: whose members.
        pool: where they are, in their order.
        quorum: members that must be alive; None: all.
        created: Unix time of the run.
        max_rows: texts that are decoded at a time.
        batch_tokens: tokens that they may have together.
    """

    def __init__(
        self,
        name: str,
        ctx: RunContext,
        ensemble: Ensemble,
        pool: Part,
        *,
        quorum: int | None,
        created: int,
        max_rows: int,
        batch_tokens: int,
    ) -> None:
        self._ctx, self._ensemble, self._pool = ctx, ensemble, pool
        self._side: EncodedSplits = ctx.side_splits(ensemble.systems[0])
        size = len(ensemble.refs)
        self.needed = size if quorum is None else min(quorum, size)
        tokenizer = self._side.tokenizer
        ends = pool.submit(0, "end_of_text", ensemble.refs[0]).result()
        self.engine = VotingEngine(
            pool,
            ensemble.refs,
            ensemble.alphas,
            decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            eos_ids=ends,
            top_k=ctx.config.vote.top_k,
            batch_tokens=batch_tokens,
            max_rows=max_rows,
            # The first of several that come at once does not wait for the others: they enter at the next step.
            enter_together=1,
            quorum=self.needed if self.needed < size else None,
            speculate=ctx.config.runtime.speculate,
        )
        facts = self.engine.facts()
        self._vocab_size = facts.vocab_size
        weights = ensemble.alphas / ensemble.alphas.sum()
        self.model = ServedModel(
            name=name,
            tokenizer=tokenizer,
            context=facts.max_positions,
            vocab_size=facts.vocab_size,
            members=ensemble.systems,
            weights=tuple(float(w) for w in weights),
            prompt=ctx.config.data.prompt,
            add_bos=ctx.config.data.add_bos,
            created=created,
            unanswerable=self._unanswerable(),
        )

    def _unanswerable(self) -> str | None:
        rule = self._ctx.config.vote.label_model
        if rule not in FITTED_TO_QUESTIONS or len(self._ensemble.refs) == 1:
            return None
        return (
            f"vote.label_model {rule} of this run is fitted to all questions together, so an answer would depend on "
            "what is asked beside it: give questions with choices to `ensemw2s label`, or serve a run with another label model"
        )

    @property
    def alive(self) -> list[int]:
        """Places of the members that can be asked."""
        return self._pool.alive()

    def returned(self, slot: int) -> None:
        """A member that was down is there again."""
        if slot in self._pool.slots:
            self.engine.restore(self._pool.slots.index(slot))

    # -- given texts -----------------------------------------------------------------------------------------

    def text_batches(self, texts: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Indices of texts that are read together: like lengths, and at most 256 MiB of probabilities a member."""
        room = max(1, MAX_HEAD_VALUES // self._vocab_size)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        begin = 0
        while begin < len(order):
            count = max(1, room // len(texts[order[begin]]))
            yield order[begin : begin + count]
            begin += count

    def score(self, texts: Sequence[np.ndarray], top: int) -> list[TextScores]:
        """Voted probability of every token of every text but its first, each (n,) with n >= 2, and the best others.

        Raises:
            WorkerFailure: a member failed.
        """
        asked, alphas = self._voting()
        targets = np.concatenate([t[1:] for t in texts])
        goals = [Goal(SamplingParams(), top=top, drawn=int(t)) for t in targets]
        decisions = self._vote_on(texts, 0, goals, asked, alphas)
        result, begin = [], 0
        for text in texts:
            own = decisions[begin : begin + len(text) - 1]
            begin += len(own)
            logs = np.array([np.log(max(d.probability, np.finfo(np.float64).tiny)) for d in own])
            tops = [[(v, float(np.log(max(p, np.finfo(np.float64).tiny)))) for v, p in d.top] for d in own]
            result.append(TextScores(logs, tops, len(asked)))
        return result

    def judge(
        self,
        prompt: np.ndarray,
        tokens: Sequence[int],
        *,
        forced: int,
        top: int,
        weights: tuple[float, ...] | None,
    ) -> list[Decision]:
        """The votes at the places of given tokens; see :meth:`ensemw2s.serving.protocol.Backend.judge`.

        Raises:
            WorkerFailure: a member failed, or none that votes is alive.
        """
        asked, alphas = self._voting(weights)
        goals = [
            Goal(SamplingParams(), top=top, drawn=int(token) if place < forced else None)
            for place, token in enumerate(tokens)
        ]
        text = np.concatenate([prompt, np.asarray(tokens)]).astype(np.int32)
        return self._vote_on([text], len(prompt) - 1, goals, asked, alphas)

    def _vote_on(
        self,
        texts: Sequence[np.ndarray],
        first: int,
        goals: Sequence[Goal],
        asked: list[int],
        alphas: np.ndarray,
    ) -> list[Decision]:
        """One decision a position of the texts, text by text, from the `first` one on (that of a text's second token is 0)."""
        refs = self._ensemble.refs
        k = min(max(self._ctx.config.vote.top_k, *(g.top for g in goals)), self._vocab_size)

        def ask(method: str, rows: Sequence[int], *args: Any) -> list[Any]:
            return self._ask_all(asked, method.replace("decode_", "text_"), np.asarray(rows) + first, *args)

        try:
            says = self._ask_all(asked, "text_begin", list(texts), k)
            return StepVote(
                [TopK(s.ids[first:], s.probs[first:], s.residual[first:]) for s in says],
                alphas,
                self._vocab_size,
                goals,
                ask,
                places=asked,
                n_members=len(refs),
            ).decide()
        finally:
            # A member that has failed holds nothing.
            for place in asked:
                with contextlib.suppress(WorkerFailure):
                    self._pool.submit(place, "text_end", refs[place]).result()

    # -- questions -------------------------------------------------------------------------------------------

    def prompts(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Questions without choices as prompts; raises DataError."""
        return [e.prompt for e in self._side.encoder.encode(samples)]

    def choose(self, samples: list[Sample], weights: tuple[float, ...] | None = None) -> list[LabelResult]:
        """The choices of questions that have some, as ``ensemw2s label`` makes them.

        Args:
            weights: (T,) in place of the run's.

        Raises:
            DataError: a question cannot be encoded.
            WorkerFailure: a member failed, or none that votes is alive.
        """
        data = self._side.encode(samples)
        asked, alphas = self._voting(weights)
        requests = [(e.prompt, e.continuations) for e in data.encoded]
        scores = self._ask_all(asked, "score_texts", requests, "questions")
        logprobs = np.stack([s.logprobs for s in scores])
        systems = [self._ensemble.systems[m] for m in asked]
        own = [answer_choices(self._ctx, data, member) for member in logprobs]
        # A student answers for itself, in its own tokens; temperatures are of members.
        is_student = self._ensemble.refs[asked[0]].side == "strong"
        voted = own[0] if is_student else vote(self._ctx, systems, alphas, data, logprobs)
        results = []
        for i, sample in enumerate(samples):
            choice, encoded = int(voted.index[i]), data.encoded[i]
            places = slice(data.choice_offsets[i], data.choice_offsets[i + 1])
            results.append(
                LabelResult(
                    choice=choice,
                    text=(sample.choices or ())[choice],
                    confidence=float(voted.confidence[i]),
                    scores=tuple(voted.soft[places].tolist()),
                    votes={system: int(own[j].index[i]) for j, system in enumerate(systems)},
                    tokens=len(encoded.prompt) + sum(len(c) for c in encoded.continuations),
                    voters=len(asked),
                    own={s: tuple(own[j].soft[places].tolist()) for j, s in enumerate(systems)},
                )
            )
        return results

    def _voting(self, weights: tuple[float, ...] | None = None) -> tuple[list[int], np.ndarray]:
        """Places of the members that vote now, and their alphas."""
        alive = self.alive
        if len(alive) < self.needed:
            raise WorkerFailure(f"{len(alive)} of {len(self._ensemble.refs)} members are alive")
        alphas = self._ensemble.alphas if weights is None else np.asarray(weights, dtype=np.float64)
        asked = [m for m in alive if alphas[m] > 0]
        if not asked:
            raise WorkerFailure("no member that votes on this request is alive")
        return asked, alphas[asked]

    def _ask_all(self, asked: Sequence[int], method: str, *args: Any) -> list[Any]:
        pending = [self._pool.submit(m, method, self._ensemble.refs[m], *args) for m in asked]
        return [p.result() for p in pending]
