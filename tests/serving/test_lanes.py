"""Copies of the models on Ray Serve: each copy of the vote keeps to one copy of each member, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ensemw2s.serving.command import settings_from
from ensemw2s.serving.deployments import _copies
from ensemw2s.serving.lanes import IDLE_SECONDS, Desks, LaneRouter
from ensemw2s.serving.settings import ServeSettings


def chosen(rank: int | None, *names: str) -> list[list[str]]:
    replicas: Any = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]
    request: Any = SimpleNamespace(kwargs={} if rank is None else {"rank": rank})
    router = LaneRouter.__new__(LaneRouter)
    found = asyncio.run(router.choose_replicas(replicas, request))
    return [[replica.replica_id.unique_id for replica in group] for group in found]


def test_a_rank_keeps_to_its_replica() -> None:
    """However the replicas are listed; ranks beyond their number go round."""
    assert chosen(0, "b", "a", "c") == chosen(0, "c", "b", "a") == [["a"]]
    assert [chosen(rank, "b", "a") for rank in (0, 1, 2, 3)] == [[["a"]], [["b"]], [["a"]], [["b"]]]
    assert chosen(None, "b", "a") == [["a"]]
    assert chosen(1) == []


def test_desks_of_callers_that_are_gone_are_cleared() -> None:
    now, made = 0.0, []

    def make() -> list[str]:
        made.append([])
        return made[-1]

    desks: Desks[list[str]] = Desks(make, lambda: now)
    first, second = desks.of("one"), desks.of("two")
    assert first is not second
    now = IDLE_SECONDS
    assert desks.of("one") is first
    now = IDLE_SECONDS + 1.0
    assert desks.of("one") is first
    assert len(made) == 2
    # The other one has been silent: it gets a new desk.
    assert desks.of("two") is not second


def test_how_many() -> None:
    assert _copies(ServeSettings(), 48.0) == {"num_replicas": 1}
    assert _copies(ServeSettings(min_copies=3), 48.0) == {"num_replicas": 3}
    scaling = _copies(settings_from({}, ["min_copies=2", "max_copies=5"]), 48.0)["autoscaling_config"]
    assert scaling == {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 48.0}
    with pytest.raises(ValueError, match="max_copies 1 is less than min_copies 2"):
        ServeSettings(min_copies=2, max_copies=1)
