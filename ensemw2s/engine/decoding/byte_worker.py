"""The batches of texts that the members of this process go on from by bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ensemw2s.engine.decoding.byte_reader import ByteReader
from ensemw2s.engine.decoding.byte_rows import ByteReply, ByteRows, ByteStep
from ensemw2s.engine.decoding.worker import SessionLost
from ensemw2s.models.decoding import StepDecoder

Begin = Callable[[], tuple[StepDecoder, ByteReader]]
"""gives a decoder without rows and the reader of its tokenizer when a batch begins"""


class ByteWorker:
    """Batches by member."""

    def __init__(self) -> None:
        self._batches: dict[Hashable, tuple[str, ByteRows]] = {}

    def step(self, key: Hashable, begin: Begin, step: ByteStep) -> ByteReply:
        """Do one step.

        Raises:
            SessionLost: the batch is not known here.
            ModelError: see :class:`ensemw2s.engine.decoding.byte_rows.ByteRows`.
        """
        if step.prompts:
            self._batches.pop(key, None)
            self._batches[key] = (step.session, ByteRows(*begin(), step.prompts))
        held = self._batches.get(key)
        if held is None or held[0] != step.session:
            raise SessionLost(f"this worker holds no such texts of {key}: it was restarted")
        rows, before = held[1], 0
        if not step.prompts:
            before = rows.forwarded
            rows.step(step.keep, step.symbols)
        return ByteReply(rows.next_symbols().astype("float32"), rows.forwarded - before)

    def end(self, key: Hashable) -> None:
        """Free the cache."""
        self._batches.pop(key, None)
