"""What Ray's exceptions mean: the error of ours inside them, and the kind of a failure."""

from __future__ import annotations

import ray

from ensemw2s.cluster.failures import Failure
from ensemw2s.errors import EnsemW2SError, TrainingDiverged


def unwrap(error: ray.exceptions.RayTaskError) -> BaseException:
    """The error that the remote code raised, where it is one of ours; else the RayTaskError with its traceback."""
    cause = error.cause if isinstance(error.cause, BaseException) else None
    while isinstance(cause, ray.exceptions.RayTaskError) and isinstance(cause.cause, BaseException):
        cause = cause.cause
    return cause if isinstance(cause, EnsemW2SError) else error


def failure_kind(error: ray.exceptions.RayError, *, node_alive: bool) -> Failure:
    """The kind of a failed call to an actor; `node_alive`: whether the node that the actor ran on still is."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return "diverged" if isinstance(unwrap(error), TrainingDiverged) else "exception"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out_of_memory"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "unavailable"
    if isinstance(error, (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)):
        # An answer that was lost lay on a node that died.
        return "node_died"
    if isinstance(error, (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)):
        if getattr(error, "actor_init_failed", False):
            return "exception"
        return "actor_died" if node_alive else "node_died"
    return "exception"


def first_line(error: BaseException) -> str:
    """For messages."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """For messages that are made of a traceback: what was raised."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
