"""The cache of shared results: whole entries come back, damaged ones do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemw2s.runs.cache import ResultCache, content_key


def test_keys_depend_on_content_and_not_on_order() -> None:
    a = np.arange(6.0)
    key = content_key({"rows": a, "seed": 1})
    assert key == content_key({"seed": 1, "rows": a[::1].copy()})
    assert key != content_key({"rows": a, "seed": 2})
    assert key != content_key({"rows": a.reshape(2, 3), "seed": 1})
    assert key != content_key({"rows": a.astype(np.float32), "seed": 1})


def test_an_entry_comes_back(tmp_path: Path) -> None:
    cache, folder = ResultCache(tmp_path / "cache"), tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(b"12345")
    key = content_key({"x": 1})
    assert cache.get(key) is None
    cache.put(key, {"steps": 3}, {"a": np.array([1.5, 2.5])}, folder)
    # A second writer of the same key changes nothing.
    cache.put(key, {"steps": 4})
    entry = cache.get(key)
    assert entry is not None
    assert entry.payload == {"steps": 3}
    assert entry.files is not None
    np.testing.assert_array_equal(entry.arrays["a"], [1.5, 2.5])
    assert (entry.files / "sub" / "weights").read_bytes() == b"12345"
    assert [p.name for p in (tmp_path / "cache" / key[:2]).iterdir()] == [key]


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "half written", "half removed"])
def test_a_damaged_entry_counts_as_absent(tmp_path: Path, damage: str) -> None:
    cache, folder = ResultCache(tmp_path / "cache"), tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"12345")
    key = content_key({"x": 1})
    cache.put(key, {}, files=folder)
    place = tmp_path / "cache" / key[:2] / key
    target = place / "files" / "weights"
    target.unlink()
    if damage == "altered":
        target.write_bytes(b"12346")
    elif damage == "truncated":
        target.write_bytes(b"123")
    elif damage == "half written":
        target.write_bytes(b"12345")
        (place / "entry.json").write_text('{"schema": 1, "pay')
    elif damage == "half removed":
        (place / "entry.json").unlink()
    assert cache.get(key) is None
    (folder / "weights").write_bytes(b"12345")
    cache.put(key, {"again": True}, files=folder)
    again = cache.get(key)
    assert again is not None
    assert again.payload == {"again": True}


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    """While one holds a key, another cannot take it; when it lets go, it can."""
    import fcntl

    cache = ResultCache(tmp_path)
    with (
        cache.lock(["a", "b", "a"]),
        (tmp_path / "locks" / "b").open() as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with cache.lock(["b"]):
        pass
