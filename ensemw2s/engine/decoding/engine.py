"""Continuous voted decoding: requests enter and leave between steps, one call to each member a step.

    engine = VotingEngine(pool, refs, alphas, decode=tokenizer.decode, eos_ids=(2,))
    number = engine.add(DecodeRequest(prompt, max_new_tokens=64, stop=("\\n",)))
    while engine.pending:
        for output in engine.step():
            print(output.text, end="")

What a request gives does not depend on the others (in float32, but for probabilities that tie within rounding).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from ensemw2s.engine.decoding.drafts import NgramDrafter
from ensemw2s.engine.decoding.members import Running
from ensemw2s.engine.decoding.messages import (
    Decision,
    DecodeCounts,
    DecodeRequest,
    Finish,
    MemberFacts,
    Speculate,
    StepOutput,
)
from ensemw2s.engine.decoding.round import Members
from ensemw2s.engine.decoding.text import AnswerText
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.errors import ModelError

#: Relative distance of neighbouring float32 numbers.
FLOAT32 = float(np.finfo(np.float32).eps)

#: Logits are about as large as this, and rounded to their format's digits: the lead that rounding may hide, in units of it.
LOGIT_SIZE = 16.0


class VotingEngine:
    """Decodes any number of requests by the vote of T members.

    ``add`` and ``cancel`` may be called from any thread while another one is in ``step``.

    Args:
        pool: who calls the members; member m is called on slot m.
        members: the voting models, T of them, of one vocabulary.
        alphas: (T,) weights, not negative, not all 0.
        decode: token ids to text, special tokens left out; None where no text is wanted.
        eos_ids: end-of-text ids, for requests that name none.
        top_k: tokens that each member sends for each row.
        batch_tokens: bound on rows times longest text (prompt + max_new_tokens); one row may exceed it.
        max_rows: bound on rows.
        enter_together: newcomers wait until there is room for this many, or for as many as are running.
        quorum: how many members must be left for the others to go on without one that has failed for good; None:
            such a failure is raised.
        speculate: what drafts tokens that one step then decides together; ngram: what followed the same words before in the
            text; auto: the same where members compute in float32, as in coarser formats a batch of another shape may give another
            answer. Requests that sample have none.
    """

    def __init__(
        self,
        pool: SupervisorPool,
        members: Sequence[ModelRef | Hashable],
        alphas: Sequence[float] | np.ndarray,
        *,
        decode: Callable[[list[int]], str] | None = None,
        eos_ids: Sequence[int] = (),
        top_k: int = 32,
        batch_tokens: int = 16384,
        max_rows: int = 256,
        enter_together: int = 1,
        quorum: int | None = None,
        speculate: Speculate = "off",
    ) -> None:
        self._alphas = np.asarray(alphas, dtype=np.float64)
        if len(members) == 0 or self._alphas.shape != (len(members),):
            raise ValueError(f"{len(members)} members came with weights of shape {self._alphas.shape}")
        if not np.isfinite(self._alphas).all() or self._alphas.min() < 0 or self._alphas.sum() == 0:
            raise ValueError(
                f"weights must be finite, not negative and not all 0, got {self._alphas.tolist()}"
            )
        if top_k < 1 or batch_tokens < 1 or max_rows < 1:
            raise ValueError("top_k, batch_tokens and max_rows must be at least 1")
        self.counts = DecodeCounts()
        self._members = Members(pool, members, top_k=top_k, quorum=quorum, counts=self.counts)
        if speculate not in ("auto", "off", "ngram"):
            raise ValueError(f"speculate must be auto, off or ngram, got {speculate!r}")
        self._drafter = None if speculate == "off" else NgramDrafter()
        self._coarsest = FLOAT32 if speculate == "auto" else math.inf
        self._decode, self._eos = decode, tuple(int(e) for e in eos_ids)
        self._batch_tokens, self._max_rows = batch_tokens, max_rows
        self._enter_together = enter_together
        self._restored: set[int] = set()
        self._guard = threading.Lock()
        self._next_id = 0
        self._waiting: deque[Running] = deque()
        self._cancelled: set[int] = set()
        self._active: dict[int, Running] = {}

    # -- requests --------------------------------------------------------------------------------------------

    def add(self, request: DecodeRequest) -> int:
        """Queue a request; the id that its outputs carry.

        Raises:
            ValueError: an empty prompt, ids outside of the vocabulary, weights that do not fit, given tokens with which the
                answer has ended.
            ModelError: the prompt leaves no room in the members' context.
        """
        weights = self._alphas if request.weights is None else np.asarray(request.weights, dtype=np.float64)
        if weights.shape != self._alphas.shape:
            raise ValueError(f"weights must have one entry a member, {len(self._alphas)}, got {len(weights)}")
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
            raise ValueError(f"weights must be finite, not negative and not all 0, got {weights.tolist()}")
        prompt = np.asarray(request.prompt)
        facts = self.facts()
        if prompt.ndim != 1 or len(prompt) == 0 or prompt.dtype.kind not in "iu":
            raise ValueError("a prompt is a vector of at least one integer token id")
        known = np.concatenate([prompt, np.asarray(request.given, dtype=np.int64)])
        if known.min() < 0 or known.max() >= facts.vocab_size:
            raise ValueError(f"token ids must be in 0..{facts.vocab_size - 1}")
        if facts.max_positions is not None and len(known) > facts.max_positions:
            raise ModelError(
                f"a text has {len(known)} tokens, the model's context holds {facts.max_positions}: lower "
                "data.max_length or vote.max_new_tokens"
            )
        if request.stop and self._decode is None:
            raise ValueError("stop strings need a decode function")
        answer = None
        if self._decode is not None:
            answer = AnswerText(self._decode, request.stop, after_text=request.stop_after_text)
        eos = frozenset(self._eos if request.eos_ids is None else request.eos_ids)
        unsaid = "" if answer is None else "".join(answer.push(token) for token in request.given)
        if not eos.isdisjoint(request.given) or (answer is not None and answer.stopped):
            raise ValueError("the answer has ended with the given tokens: there is nothing to go on with")
        with self._guard:
            running = Running(self._next_id, request, weights, eos, answer, list(request.given), unsaid)
            self._next_id += 1
            self._waiting.append(running)
        return running.id

    def cancel(self, request: int) -> None:
        """Give up a request; its rows are free from the next step on. Nothing happens where it has ended."""
        with self._guard:
            self._cancelled.add(request)

    @property
    def pending(self) -> int:
        """Requests that wait or run; those just cancelled count until the next step."""
        return len(self._waiting) + len(self._active)

    @property
    def running(self) -> int:
        """Requests that hold rows."""
        return len(self._active)

    @property
    def absent(self) -> tuple[int, ...]:
        """Members that the vote goes on without."""
        return tuple(sorted(self._members.absent))

    def restore(self, member: int) -> None:
        """A failed member is there again: it votes from the next step on, on running requests too."""
        with self._guard:
            self._restored.add(member)

    def facts(self) -> MemberFacts:
        """The members' common vocabulary and limits; ModelError for members of different vocabularies."""
        return self._members.facts()

    # -- one step --------------------------------------------------------------------------------------------

    def step(self) -> list[StepOutput]:
        """One token for every running request, newcomers included, and further ones as far as drafts of them stand.

        An error of a member is raised when every member has been heard; the requests are kept, and the next step
        begins from their texts.
        """
        self._admit()
        if not self._active:
            self.close()
            return []
        drafts = self._drafts()
        try:
            decisions = self._members.decide(self._active, drafts)
        except BaseException:
            self._members.forget()
            raise
        self.counts.steps += 1
        outputs: list[StepOutput] = []
        for i, decided in decisions.items():
            outputs += self._outputs(self._active[i], decided)
            self.counts.drafted += len(drafts.get(i, ()))
            self.counts.stood += len(decided) - 1
            if self._drafter is not None:
                self._drafter.learn(i, [d.token for d in decided])
        for output in outputs:
            self._count(output)
            if output.finish is not None:
                del self._active[output.request]
        if not self.pending:
            self.close()
        return outputs

    def _drafts(self) -> dict[int, list[int]]:
        """Tokens that may come next, by request: no more than the answer and the context have room for."""
        facts = self.facts()
        if self._drafter is None or not facts.can_enter or facts.rounding > self._coarsest:
            return {}
        context = facts.max_positions
        most: dict[int, int] = {}
        for i, running in self._active.items():
            made = len(running.tokens)
            room = running.request.max_new_tokens - made - 1
            if context is not None:
                room = min(room, context - len(running.request.prompt) - made)
            # Texts that are read anew are read without drafts; they have been seen by their second token.
            if running.request.sampling.greedy and made > len(running.request.given) and room > 0:
                most[i] = room
        texts = {i: (r.request.prompt, r.tokens) for i, r in self._active.items()}
        return self._drafter.propose(texts, most, len(self._active))

    def _outputs(self, running: Running, decided: Sequence[Decision]) -> list[StepOutput]:
        """The tokens of one step, as far as the answer goes on."""
        outputs: list[StepOutput] = []
        for decision in decided:
            outputs.append(self._output(running, decision))
            if outputs[-1].finish is not None:
                break
        return outputs

    def _count(self, output: StepOutput) -> None:
        decision = output.decision
        self.counts.paths[decision.path] += 1
        self.counts.completed += decision.completed
        if self._active[output.request].request.sampling.greedy:
            lead = np.log(decision.probability) - np.log(max(decision.runner_up, np.finfo(np.float64).tiny))
            self.counts.close += bool(lead <= LOGIT_SIZE * self.facts().rounding)

    def close(self) -> None:
        """Free the members' rows; running requests, if any, begin anew from their texts."""
        self._members.end()

    def _admit(self) -> None:
        """Drop what was cancelled; let waiting requests in, in their order, as far as there is room."""
        with self._guard:
            self._members.absent -= self._restored
            self._restored.clear()
            if self._cancelled:
                self._waiting = deque(r for r in self._waiting if r.id not in self._cancelled)
                for i in self._cancelled & self._active.keys():
                    del self._active[i]
                self._cancelled.clear()
            if self._active and not self.facts().can_enter:
                return
            rows, longest = len(self._active), max((r.longest for r in self._active.values()), default=0)
            entering = 0
            for waiting in self._waiting:
                longest = max(longest, waiting.longest)
                fits = rows < self._max_rows and (rows + 1) * longest <= self._batch_tokens
                if rows and not fits:
                    break
                rows, entering = rows + 1, entering + 1
            if entering < min(self._enter_together, len(self._waiting), len(self._active)):
                return
            for _ in range(entering):
                running = self._waiting.popleft()
                self._active[running.id] = running

    def _output(self, running: Running, decision: Decision) -> StepOutput:
        index = len(running.tokens)
        running.tokens.append(decision.token)
        limit = self.facts().max_positions
        text, running.unsaid = running.unsaid, ""
        begins = 0 if running.answer is None else running.answer.length
        finish: Finish | None = None
        if decision.token in running.eos:
            finish = "eos"
        elif running.answer is not None:
            text += running.answer.push(decision.token)
        full = limit is not None and len(running.request.prompt) + len(running.tokens) > limit
        if finish is None and (len(running.tokens) == running.request.max_new_tokens or full):
            finish = "length"
        if running.answer is not None:
            if finish is not None and not running.answer.stopped:
                text += running.answer.finish()
            if running.answer.stopped:
                finish = "stop"
        return StepOutput(running.id, index, decision, text, finish, begins)
