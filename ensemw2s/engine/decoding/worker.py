"""A member's side of a voted decode: one session of rows for each model that this process steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensemw2s.engine.decoding.messages import MemberFacts, MemberReply, MemberStep
from ensemw2s.engine.pool import Done, Pending
from ensemw2s.engine.tasks import TopK
from ensemw2s.errors import WorkerFailure
from ensemw2s.models.adapters import RoutedModel
from ensemw2s.models.decoding import StepDecoder
from ensemw2s.models.lanes import LaneRows, Lanes, Move


class SessionLost(WorkerFailure):
    """A decode was asked to go on by a worker that does not hold it (it was restarted)."""


Source = Callable[[], tuple[Any, int]]
"""gives a model and a pad id when a session begins"""


class DecodeWorker:
    """Decode sessions by the models' keys."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[str, StepDecoder | LaneRows]] = {}

    def facts(self, model: Any, pad_id: int) -> MemberFacts:
        """What the scheduler needs to know; raises ModelError for a model without a cache."""
        decoder = StepDecoder(model, pad_id=pad_id)
        return MemberFacts(decoder.vocab_size, decoder.max_positions, decoder.can_enter, decoder.rounding)

    def step(self, key: str, model: Source, step: MemberStep) -> MemberReply:
        """Do one step.

        Raises:
            SessionLost: the session is not known here.
            ModelError: see :class:`ensemw2s.models.decoding.StepDecoder`.
        """
        (reply,) = self.steps([(key, model, step)])
        if isinstance(reply, WorkerFailure):
            raise reply
        return reply

    def steps(self, asked: Sequence[tuple[str, Source, MemberStep]]) -> list[MemberReply | WorkerFailure]:
        """One step of each of several members; those that share a base do it in one forward.

        Returns:
            their replies, or why there is none.

        Raises:
            ModelError: as for one.
        """
        replies: dict[str, MemberReply | WorkerFailure] = {}
        together: dict[int, tuple[Lanes, dict[int, Move]]] = {}
        for key, model, step in asked:
            try:
                decoder = self._begun(key, model, step)
            except SessionLost as lost:
                replies[key] = lost
                continue
            if isinstance(decoder, LaneRows):
                _, moves = together.setdefault(id(decoder.lanes), (decoder.lanes, {}))
                moves[decoder.member] = Move(step.keep, step.tokens, step.prompts, step.stand, step.drafts)
                continue
            decoder.settle(step.stand)
            if step.keep is not None:
                decoder.keep(step.keep)
            if len(step.tokens):
                decoder.advance(step.tokens, step.drafts)
            if step.prompts:
                decoder.enter(step.prompts)
        for lanes, moves in together.values():
            lanes.step(moves)
        for key, _, step in asked:
            if key not in replies:
                _, decoder = self._held(key)
                drawn = decoder.draw(step.draw_rows, step.draw_uniforms)
                replies[key] = MemberReply(TopK(*decoder.top_k(step.k)), drawn)
        return [replies[key] for key, _, _ in asked]

    def _begun(self, key: str, model: Source, step: MemberStep) -> StepDecoder | LaneRows:
        """The rows that a step is about."""
        if step.begin:
            self._sessions.pop(key, None)
            made, pad_id = model()
            self._sessions[key] = (step.session, self._rows_of(made, pad_id))
        session, decoder = self._held(key)
        if session != step.session:
            raise SessionLost(f"this worker decodes {key} for somebody else")
        return decoder

    def _rows_of(self, model: Any, pad_id: int) -> StepDecoder | LaneRows:
        decoder = StepDecoder(model, pad_id=pad_id)
        if not (isinstance(model, RoutedModel) and isinstance(model.adapters, int) and decoder.can_enter):
            return decoder
        held = (d.lanes for _, d in self._sessions.values() if isinstance(d, LaneRows))
        lanes = next((found for found in held if found.shared is model.shared), None)
        return LaneRows(lanes or Lanes(model.shared, pad_id=pad_id), model.adapters)

    def exact(self, key: str, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Probabilities of given tokens of some rows: (n,), (n, m) -> (n, m) float32."""
        values: np.ndarray = self._held(key)[1].exact(rows, ids)
        return values

    def more(self, key: str, rows: np.ndarray, k: int) -> TopK:
        """The k most probable tokens of some rows."""
        return TopK(*self._held(key)[1].top_k(k, rows))

    def full(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The whole distributions of some rows, (n, V) float32."""
        values: np.ndarray = self._held(key)[1].full(rows)
        return values

    def end(self, key: str) -> None:
        """Free the cache."""
        _, decoder = self._sessions.pop(key, ("", None))
        if isinstance(decoder, LaneRows):
            decoder.lanes.drop(decoder.member)

    def _held(self, key: str) -> tuple[str, StepDecoder | LaneRows]:
        try:
            return self._sessions[key]
        except KeyError:
            raise SessionLost(f"this worker holds no decode of {key}: it was restarted") from None


class ModelPool:
    """Models of this process as a pool of members, for an ensemble that no run directory describes.

    Args:
        models: causal language models in evaluation mode, one a member, of one vocabulary.
        pad_id: any valid token id.

    The member reference of ``submit`` is its index.
    """

    def __init__(self, models: Sequence[Any], *, pad_id: int = 0) -> None:
        self._models, self._pad_id, self.size = list(models), pad_id, len(models)
        self._worker = DecodeWorker()

    @property
    def refs(self) -> list[int]:
        """Member references for the engine."""
        return list(range(self.size))

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        """Call one of the ``decode_`` methods of a supervisor, at once."""
        if method == "decode_steps":
            asked = [(str(ref), self._source(ref), step) for ref, step in args[0]]
            return Done(self._worker.steps(asked))
        ref, *rest = args
        if method == "decode_facts":
            return Done(self._worker.facts(self._models[ref], self._pad_id))
        if method == "decode_step":
            return Done(self._worker.step(str(ref), self._source(ref), *rest))
        calls: dict[str, Callable[..., Any]] = {
            "decode_exact": self._worker.exact,
            "decode_more": self._worker.more,
            "decode_full": self._worker.full,
            "decode_end": self._worker.end,
        }
        return Done(calls[method](str(ref), *rest))

    def _source(self, ref: int) -> Source:
        return lambda: (self._models[ref], self._pad_id)
