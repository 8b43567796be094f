"""The failure policy and the kinds of failures by table; no cluster is started."""

from __future__ import annotations

import pytest
from ray import exceptions

from ensemw2s.cluster.failures import Action, Failure, FailureCounts, FailureLimits, decide
from ensemw2s.cluster.remote_errors import failure_kind, first_line, last_line, unwrap
from ensemw2s.errors import TrainingDiverged


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


def task_error(cause: Exception) -> exceptions.RayTaskError:
    return exceptions.RayTaskError("call", "Traceback ...", cause)


@pytest.mark.parametrize(
    ("error", "node_alive", "kind"),
    [
        (exceptions.ActorDiedError(), True, "actor_died"),
        (exceptions.ActorDiedError(), False, "node_died"),
        # Its __init__ raised: the next one's would, too.
        (exceptions.ActorDiedError(task_error(ValueError("no such device"))), True, "exception"),
        (exceptions.ActorUnavailableError("reset", None), False, "unavailable"),
        (exceptions.OutOfMemoryError("killed"), True, "out_of_memory"),
        (exceptions.ObjectLostError("00" * 28, None, ""), True, "node_died"),
        (exceptions.NodeDiedError("gone"), True, "node_died"),
        (task_error(ValueError("wrong")), True, "exception"),
        (task_error(TrainingDiverged("nan")), True, "diverged"),
        (exceptions.RaySystemError("oops"), True, "exception"),
    ],
)
def test_kinds(error: exceptions.RayError, node_alive: bool, kind: Failure) -> None:
    assert failure_kind(error, node_alive=node_alive) == kind


def test_the_error_inside() -> None:
    ours = TrainingDiverged("the loss became nan")
    assert unwrap(task_error(task_error(ours))) is ours
    theirs = task_error(ValueError("wrong"))
    assert unwrap(theirs) is theirs


def test_lines_for_messages() -> None:
    error = RuntimeError("\n first \n\n last\n")
    assert (first_line(error), last_line(error)) == ("first", "last")
    assert first_line(RuntimeError("")) == "RuntimeError"
