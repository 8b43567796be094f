"""The failure policy by table, without Ray."""

from __future__ import annotations

import pytest

from ensemw2s.cluster.failures import Action, Failure, FailureCounts, FailureLimits, decide


@pytest.mark.parametrize(
    ("kind", "restarts", "waited", "members", "quorum", "action"),
    [
        ("actor_died", 0, 0.0, 3, None, "retry"),
        ("actor_died", 1, 0.0, 3, None, "retry"),
        ("actor_died", 2, 0.0, 3, None, "raise"),
        ("node_died", 1, 0.0, 3, 2, "retry"),
        ("node_died", 2, 0.0, 3, 2, "drop"),
        ("node_died", 2, 0.0, 2, 2, "raise"),
        ("actor_died", 2, 0.0, 1, 0, "raise"),
        ("unavailable", 0, 59.9, 3, None, "wait"),
        ("unavailable", 2, 59.9, 3, 2, "wait"),
        ("unavailable", 0, 60.0, 3, None, "retry"),
        ("unavailable", 2, 60.0, 3, None, "raise"),
        ("unavailable", 2, 60.0, 3, 2, "drop"),
        ("exception", 0, 0.0, 3, 1, "raise"),
        ("out_of_memory", 0, 0.0, 3, 1, "raise"),
        ("diverged", 0, 0.0, 3, 1, "raise"),
    ],
)
def test_policy(
    kind: Failure, restarts: int, waited: float, members: int, quorum: int | None, action: Action
) -> None:
    limits = FailureLimits(max_failures=2, max_wait_seconds=60.0, quorum=quorum)
    assert decide(kind, FailureCounts(restarts, waited, members), limits) == action
