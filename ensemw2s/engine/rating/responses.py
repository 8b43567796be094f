"""Who answered what right: a table of samples by models, for item response theory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.data.files import read_rows
from ensemw2s.data.samples import Sample
from ensemw2s.errors import DataError

_VALUES = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0, "true": 1.0, "false": 0.0, "": np.nan}


def read_responses(path: Path, samples: Sequence[Sample]) -> tuple[np.ndarray, list[str]]:
    """Right and wrong answers to the samples.

    Args:
        path: CSV, JSONL or Parquet with a column ``id`` and one column a model: 1 or true is right, 0 or false wrong, empty
            not asked. Other samples may stand there too; they are left aside.
        samples: n samples.

    Returns:
        (models, n) 1, 0 or NaN in the order of the samples, and the names of the models that answered any.

    Raises:
        DataError: an unknown value, an id twice, a sample without any answer.
    """
    found: dict[str, list[float]] = {}
    names: list[str] | None = None
    for place, row in read_rows(path):
        if row.get("id") is None:
            raise DataError(f"{place}: no id (columns: {', '.join(row)}): name the sample in a column 'id'")
        if names is None:
            names = [name for name in row if name != "id"]
        # JSON lines may leave out what was not asked, and name a model later.
        names += [name for name in row if name != "id" and name not in names]
        sample_id = str(row["id"])
        if sample_id in found:
            raise DataError(f"{place}: the id {sample_id!r} is there twice: give every sample one row")
        found[sample_id] = [_value(row.get(name), f"{place}, model {name!r}") for name in names]
    if names is None:
        raise DataError(f"{path} is empty: give a row for each sample")
    missing = [s.id for s in samples if s.id not in found]
    if missing:
        raise DataError(
            f"{path} has no row for {len(missing)} of {len(samples)} samples (first: {missing[0]!r}): add them, with the ids of the data"
        )
    rows = [found[s.id] + [np.nan] * (len(names) - len(found[s.id])) for s in samples]
    responses = np.array(rows, dtype=np.float64).T
    asked = ~np.isnan(responses)
    if not asked.any(axis=0).all():
        nobody = samples[int(np.argmin(asked.any(axis=0)))].id
        raise DataError(f"{path}: no model answered the sample {nobody!r}: leave it out of the data")
    used = np.flatnonzero(asked.any(axis=1))
    return responses[used], [names[m] for m in used]


def _value(cell: Any, place: str) -> float:
    text = "" if cell is None else str(cell).strip().lower()
    if text == "nan":
        text = ""
    if text not in _VALUES:
        raise DataError(
            f"{place}: {cell!r} is no answer: 1 or true is right, 0 or false wrong, empty not asked"
        )
    return _VALUES[text]
