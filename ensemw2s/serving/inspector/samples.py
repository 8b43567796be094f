"""The questions of a run's splits, without their answers until these are asked for."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow.parquet as pq

from ensemw2s.data.samples import Sample, samples_from_table
from ensemw2s.engine.context import RunContext
from ensemw2s.runs.report_systems import ordered_splits
from ensemw2s.serving.errors import ApiError


class Samples:
    """Reads splits when they are first asked for, and keeps them; used from any thread.

    Args:
        ctx: the run.
    """

    def __init__(self, ctx: RunContext) -> None:
        self._folder = ctx.run_dir / "splits"
        self._lock = threading.Lock()
        self._read: dict[str, list[Sample]] = {}
        self.names = tuple(ordered_splits([path.stem for path in self._folder.glob("*.parquet")]))

    def sizes(self) -> dict[str, int]:
        """Questions by split."""
        return {n: pq.read_metadata(self._folder / f"{n}.parquet").num_rows for n in self.names}

    def page(self, split: str, offset: int, limit: int, find: str) -> dict[str, Any]:
        """Some questions of a split, in its order; with `find` those whose text or id holds it.

        Raises:
            ApiError: no such split.
        """
        wanted = find.casefold()
        found = [s for s in self._of(split) if wanted in s.question.casefold() or wanted in s.id.casefold()]
        data = [
            {"id": s.id, "question": s.question, "choices": None if s.choices is None else list(s.choices)}
            for s in found[offset : offset + limit]
        ]
        return {"split": split, "total": len(found), "offset": offset, "data": data}

    def truth(self, split: str, id_: str) -> dict[str, Any]:
        """The answer of one question; null where the run has none.

        Raises:
            ApiError: no such split, or no such question in it.
        """
        for sample in self._of(split):
            if sample.id == id_:
                index = sample.answer if isinstance(sample.answer, int) else None
                return {"split": split, "id": id_, "choice": index, "answer": sample.answer_text}
        raise ApiError(404, f"{split} has no question {id_[:100]!r}", code="not_found", param="id")

    def _of(self, split: str) -> list[Sample]:
        if split not in self.names:
            raise ApiError(
                404,
                f"the run has no split {split[:100]!r}; there is {', '.join(self.names)}",
                code="not_found",
                param="split",
            )
        with self._lock:
            if split not in self._read:
                self._read[split] = samples_from_table(pq.read_table(self._folder / f"{split}.parquet"))
            return self._read[split]
