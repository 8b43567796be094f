"""Samples from every kind of source of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ensemw2s.config import BuiltinSource, ColumnsConfig, FileSource, HubSource, ReasoningGymSource
from ensemw2s.data.balance import balanced
from ensemw2s.data.builtin import hub_source, row_mapping
from ensemw2s.data.files import Row, read_rows
from ensemw2s.data.hub import load_hub, local_copy
from ensemw2s.data.reasoning import load_reasoning_gym
from ensemw2s.data.rows import parse_rows
from ensemw2s.data.samples import Sample
from ensemw2s.errors import DataError

RowMapping = Callable[[dict[str, Any]], dict[str, Any]]
AnySource = FileSource | HubSource | BuiltinSource | ReasoningGymSource


def load_source(
    source: AnySource, *, base_dir: Path | None = None, require_answer: bool = True
) -> list[Sample]:
    """All samples of a source, in its order.

    Args:
        source: any of the configuration's sources.
        base_dir: folder that relative paths start from; default: the working directory.
        require_answer: refuse unlabelled samples.

    Raises:
        DataError: the source cannot be reached or read, or a row is not a valid sample; the line names the
            place.
    """
    if isinstance(source, ReasoningGymSource):
        return load_reasoning_gym(source)
    if isinstance(source, FileSource):
        path = resolve(source.path, base_dir)
        samples = _load_file(path, source.columns, source.limit, require_answer)
    elif isinstance(source, HubSource):
        samples = _load_hub(source, base_dir, require_answer)
    else:
        samples = _load_builtin(source, base_dir, require_answer)
    return balanced(samples) if source.balance else samples


def load_unlabeled(
    path: str | Path, *, columns: ColumnsConfig | None = None, base_dir: Path | None = None
) -> list[Sample]:
    """Samples of a file whose answers may be missing; raises as :func:`load_source` does."""
    return _load_file(resolve(path, base_dir), columns or ColumnsConfig(), None, require_answer=False)


def resolve(path: str | Path, base_dir: Path | None) -> Path:
    """A path of the configuration: ``~`` expanded, relative ones from ``base_dir``."""
    expanded = Path(path).expanduser()
    return expanded if base_dir is None else base_dir / expanded


def _load_file(path: Path, columns: ColumnsConfig, limit: int | None, require_answer: bool) -> list[Sample]:
    return parse_rows(
        read_rows(path),
        columns,
        name=str(path),
        require_answer=require_answer,
        typed=path.suffix.lower() != ".csv",
        limit=limit,
    )


def _load_builtin(source: BuiltinSource, base_dir: Path | None, require_answer: bool) -> list[Sample]:
    hub = hub_source(source)
    if source.path is not None:
        hub = local_copy(hub, resolve(source.path, base_dir), f"{source.name} {hub.split}")
    return _load_hub(hub, base_dir, require_answer, row_mapping(source.name))


def _load_hub(
    source: HubSource, base_dir: Path | None, require_answer: bool, mapping: RowMapping | None = None
) -> list[Sample]:
    local = resolve(source.path, base_dir)
    path = str(local) if local.exists() else source.path
    name = f"{source.path}{f' ({source.name})' if source.name else ''} {source.split}"
    rows = _hub_rows(load_hub(source, path, name), name, mapping)
    return parse_rows(rows, source.columns, name=name, require_answer=require_answer, limit=source.limit)


def _hub_rows(dataset: Any, name: str, mapping: RowMapping | None) -> Iterator[Row]:
    for number, row in enumerate(dataset, start=1):
        place = f"{name} row {number}"
        try:
            yield place, row if mapping is None else mapping(row)
        except KeyError as error:
            raise DataError(f"{place}: no column {error.args[0]!r} (columns: {', '.join(row)})") from error
