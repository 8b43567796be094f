"""Writing tables for users: JSON lines, CSV or Parquet, whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".parquet")


def check_output(path: Path) -> Path:
    """The path, when a table can be written there.

    Raises:
        DataError: unknown ending, no such folder, no permission, or a folder of that name.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"cannot tell the format of {path}: the name must end in {', '.join(SUFFIXES)}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: make it first, or write elsewhere")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(
            f"{path} cannot be written: it is a folder or you may not write there; choose another --output"
        )
    return path


def write_table(table: pa.Table, path: Path) -> None:
    """Write the table in the format of the path's ending; lists become JSON in CSV cells."""
    write_tables([table], path)


def write_tables(tables: Iterable[pa.Table], path: Path) -> None:
    """The same for a table that comes in parts of one schema; one part is held at a time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        {".parquet": _write_parquet, ".jsonl": _write_jsonl, ".csv": _write_csv}[path.suffix](
            tables, temporary
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(tables: Iterable[pa.Table], path: Path) -> None:
    parts = iter(tables)
    first = next(parts)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for table in chain([first], parts):
            writer.write_table(table)


def _write_jsonl(tables: Iterable[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as handle:
        for table in tables:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def _write_csv(tables: Iterable[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        for i, table in enumerate(tables):
            if i == 0:
                writer.writerow(table.column_names)
            for row in table.to_pylist():
                cells = (
                    json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in row.values()
                )
                writer.writerow(list(cells))
