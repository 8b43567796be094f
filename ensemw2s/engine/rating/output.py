"""The rated data set: the same samples with their difficulty and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import DataConfig
from ensemw2s.data.samples import Sample, samples_to_table

METADATA = b"ensemw2s.rating"
"""key of the provenance in the metadata of a Parquet file, JSON"""


@dataclass(frozen=True, eq=False)
class Rating:
    """Ratings of n samples.

    Attributes:
        method: folds, members or irt.
        difficulty: (n,) finite, larger is harder.
        config: hash of all that the ratings depend on.
        fold: (n,) the fold that held each sample out, or None.
        details: more of where they come from, as plain JSON data.
    """

    method: str
    difficulty: np.ndarray
    config: str
    fold: np.ndarray | None
    details: dict[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """Method, hash and details, as they stand in a Parquet file's metadata."""
        return {"method": self.method, "config": self.config, **self.details}


def rated_table(samples: Sequence[Sample], rating: Rating) -> pa.Table:
    """The samples with the columns ``difficulty``, ``rated_by``, ``rated_config`` and ``rated_fold``, in their order.

    A difficulty that was there before is replaced. The choices' answer stands as its text.
    """
    n = len(samples)
    rated = [replace(s, difficulty=float(d)) for s, d in zip(samples, rating.difficulty, strict=True)]
    fold = [None] * n if rating.fold is None else rating.fold.tolist()
    table = samples_to_table(rated).drop_columns(["answer_index"])
    if samples[0].choices is None:
        table = table.drop_columns(["choices"])
    for name, column in (
        ("rated_by", pa.array([rating.method] * n, pa.string())),
        ("rated_config", pa.array([rating.config] * n, pa.string())),
        ("rated_fold", pa.array(fold, pa.int32())),
    ):
        table = table.append_column(name, column)
    return table.replace_schema_metadata({METADATA: json.dumps(rating.provenance).encode()})


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Where the ratings of a file come from; None where it does not say (other formats than Parquet do not)."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    found = (pq.read_schema(path).metadata or {}).get(METADATA)
    return None if found is None else dict(json.loads(found))


def rated_sources(data: DataConfig) -> dict[str, dict[str, Any]]:
    """Where the ratings of a run's files come from, by the name of the source; sources that do not say are left out."""
    named = {name: getattr(data, name) for name in ("pool", "easy", "hard", "test")} | data.extra_tests
    found = {
        name: read_provenance(Path(source.path))
        for name, source in named.items()
        if source is not None and source.kind == "file"
    }
    return {name: provenance for name, provenance in found.items() if provenance is not None}
