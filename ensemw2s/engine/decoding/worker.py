"""A member's side of a voted decode: one session of rows for each model that this process steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensemw2s.engine.decoding.messages import MemberFacts, MemberReply, MemberStep
from ensemw2s.engine.pool import Done, Pending
from ensemw2s.engine.tasks import TopK
from ensemw2s.errors import WorkerFailure
from ensemw2s.models.decoding import StepDecoder


class SessionLost(WorkerFailure):
    """A decode was asked to go on by a worker that does not hold it (it was restarted)."""


class DecodeWorker:
    """Decode sessions by the models' keys."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[str, StepDecoder]] = {}

    def facts(self, model: Any, pad_id: int) -> MemberFacts:
        """What the scheduler needs to know; raises ModelError for a model without a cache."""
        decoder = StepDecoder(model, pad_id=pad_id)
        return MemberFacts(decoder.vocab_size, decoder.max_positions, decoder.can_enter)

    def step(self, key: str, model: Callable[[], tuple[Any, int]], step: MemberStep) -> MemberReply:
        """Do one step; `model` gives the model and a pad id when a session begins.

        Raises:
            SessionLost: the session is not known here.
            ModelError: see :class:`ensemw2s.models.decoding.StepDecoder`.
        """
        if step.begin:
            self._sessions.pop(key, None)
            made, pad_id = model()
            self._sessions[key] = (step.session, StepDecoder(made, pad_id=pad_id))
        session, decoder = self._held(key)
        if session != step.session:
            raise SessionLost(f"this worker decodes {key} for somebody else")
        if step.keep is not None:
            decoder.keep(step.keep)
        if len(step.tokens):
            decoder.advance(step.tokens)
        if step.prompts:
            decoder.enter(step.prompts)
        return MemberReply(TopK(*decoder.top_k(step.k)), decoder.draw(step.draw_rows, step.draw_uniforms))

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
        self._sessions.pop(key, None)

    def _held(self, key: str) -> tuple[str, StepDecoder]:
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
        ref, *rest = args
        if method == "decode_facts":
            return Done(self._worker.facts(self._models[ref], self._pad_id))
        if method == "decode_step":
            return Done(self._worker.step(str(ref), lambda: (self._models[ref], self._pad_id), *rest))
        calls: dict[str, Callable[..., Any]] = {
            "decode_exact": self._worker.exact,
            "decode_more": self._worker.more,
            "decode_full": self._worker.full,
            "decode_end": self._worker.end,
        }
        return Done(calls[method](str(ref), *rest))
