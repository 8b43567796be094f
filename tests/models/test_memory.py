"""Freed memory goes back to the system."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemw2s.models import memory


def resident() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_gaps_are_given_back() -> None:
    if memory._malloc_trim() is None:
        pytest.skip("the C library is not glibc")
    # Blocks that glibc takes from its heap; every 100th stays, so that the end of the heap never moves back.
    blocks = [np.ones(12_500) for _ in range(2000)]
    kept = blocks[::100]
    full = resident()
    del blocks
    memory.give_back_memory()
    assert resident() < full - 100_000_000
    assert all(block.sum() == 12_500 for block in kept)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.give_back_memory()
    assert resident() > 0
