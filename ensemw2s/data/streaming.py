"""Samples of a file that need not fit into memory: checked once from end to end, then read in chunks."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from ensemw2s.config import ColumnsConfig
from ensemw2s.data.files import read_rows
from ensemw2s.data.rows import parse_row
from ensemw2s.data.samples import Sample
from ensemw2s.errors import DataError

T = TypeVar("T")


class SampleFile:
    """The samples of one file, in order, as often as asked; what is held of each is 8 bytes.

    Rows without an id have that of their content, with a number behind it where the same row came before; that is what
    :func:`ensemw2s.data.sources.load_unlabeled` gives.

    Args:
        path: JSONL, CSV or Parquet.
        columns: which column holds what.

    Attributes:
        n: samples.
        multiple_choice: they have choices.
        digest: of the file's content, for telling whether it is the same one.

    Raises:
        DataError: as :func:`ensemw2s.data.rows.parse_rows`; answers may be missing.
    """

    def __init__(self, path: Path, columns: ColumnsConfig | None = None) -> None:
        self._path, self._columns = path, columns or ColumnsConfig()
        hashes = array("Q")
        chosen: bool | None = None
        first = ""
        for place, sample, _ in self._parsed():
            if chosen is None:
                chosen, first = sample.choices is not None, place
            elif chosen != (sample.choices is not None):
                has, had = ("no choices", "choices") if chosen else ("choices", "no choices")
                raise DataError(f"{place} has {has}, but {first} has {had}: all samples must be alike")
            hashes.append(_hash(sample.id))
        if chosen is None:
            raise DataError(f"{path} is empty: it has no samples")
        values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
        self.n, self.multiple_choice = len(hashes), chosen
        self._repeated = frozenset(values[counts > 1].tolist())
        if self._repeated:
            self._check_ids()
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()

    def chunks(self, size: int) -> Iterator[list[Sample]]:
        """The samples, `size` at a time."""
        seen: Counter[str] = Counter()
        for rows in _chunks(self._parsed(), size):
            chunk = []
            for _, sample, has_id in rows:
                if not has_id and _hash(sample.id) in self._repeated:
                    seen[sample.id] += 1
                    number = seen[sample.id]
                    if number > 1:
                        sample = Sample(
                            f"{sample.id}-{number}",
                            sample.question,
                            sample.choices,
                            sample.answer,
                            sample.difficulty,
                        )
                chunk.append(sample)
            yield chunk

    def _parsed(self) -> Iterator[tuple[str, Sample, bool]]:
        typed = self._path.suffix.lower() != ".csv"
        for place, row in read_rows(self._path):
            sample, has_id = parse_row(place, row, self._columns, require_answer=False, typed=typed)
            yield place, sample, has_id

    def _check_ids(self) -> None:
        """Ids that the file gives must differ; equal rows without one are fine."""
        places: dict[str, str] = {}
        for place, sample, has_id in self._parsed():
            if not has_id or _hash(sample.id) not in self._repeated:
                continue
            if sample.id in places:
                raise DataError(
                    f"duplicate id {sample.id!r}: {places[sample.id]} and {place}: give every sample its own id"
                )
            places[sample.id] = place


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk
