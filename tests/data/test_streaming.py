"""Files in chunks: the same samples as read at once, the same refusals, little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.data.sources import load_unlabeled
from ensemw2s.data.streaming import SampleFile
from ensemw2s.errors import DataError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("ids", [True, False])
def test_chunks_joined_are_the_file(tmp_path: Path, size: int, ids: bool) -> None:
    rows = [
        {"question": f"q{i % 7}", "choices": ["a", "b"]} | ({"id": f"n{i}"} if ids else {}) for i in range(20)
    ]
    path = write(tmp_path / "q.jsonl", rows)
    file = SampleFile(path)
    # Twice: a file can be read as often as asked.
    for _ in range(2):
        assert [s for chunk in file.chunks(size) for s in chunk] == load_unlabeled(path)
    assert (file.n, file.multiple_choice) == (20, True)
    assert len({s.id for chunk in file.chunks(size) for s in chunk}) == 20


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty: it has no samples"),
        (
            [{"question": "q", "id": "x"}, {"question": "p", "id": "x"}],
            r"duplicate id 'x': .*:1 and .*:2: give every",
        ),
        (
            [{"question": "q", "choices": ["a", "b"]}, {"question": "p"}],
            r":2 has no choices, but .*:1 has choices",
        ),
        ([{"question": "q"}, {"answer": "p"}], r":2: .*question"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_read_in(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        SampleFile(write(tmp_path / "q.jsonl", rows))


def test_another_content_is_another_file(tmp_path: Path) -> None:
    digest = SampleFile(write(tmp_path / "q.jsonl", [{"question": "q"}])).digest
    assert SampleFile(write(tmp_path / "q.jsonl", [{"question": "r"}])).digest != digest


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the samples, and a peak that is not twice as high."""

    def peak(n: int) -> int:
        path = write(tmp_path / f"{n}.jsonl", [{"question": f"{i} " + "x" * 2000} for i in range(n)])
        tracemalloc.start()
        for chunk in SampleFile(path).chunks(64):
            del chunk
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(2000) < 2 * peak(200)
