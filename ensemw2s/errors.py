"""Errors that a user can act on.

Every :class:`UserError` is one line (``ConfigError`` may hold several problems, a line each) that says what came,
what is allowed and what to do. The command line prints it and exits with code 2. Errors cross process boundaries, so
each one rebuilds from its ``args`` when unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence


class EnsemW2SError(Exception):
    """Base of every error that this package raises on purpose."""


class UserError(EnsemW2SError):
    """Something that the user gave cannot be used; nothing was written because of it."""


class ConfigError(UserError):
    """One or more problems of a configuration, all reported at once.

    Args:
        problems: one line each, naming the field, what came and what is allowed.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        lines = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(lines)
        self.problems: tuple[str, ...] = lines

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DataError(UserError):
    """A data source, a sample or a split cannot be used."""


class ModelError(UserError):
    """A model or a tokenizer cannot be used."""


class ResourceError(UserError):
    """More GPUs, CPUs, memory or disk is asked for than there is."""


class RunDirectoryError(UserError):
    """The run directory cannot be written, or belongs to another configuration."""


class ArtifactError(EnsemW2SError):
    """A stored artifact of a run is missing or is not what was committed."""


class WorkerFailure(EnsemW2SError):
    """A worker process died more often than the configuration allows; the run can be continued."""


class MemberLost(WorkerFailure):
    """Whoever works for a member dies, and ``runtime.quorum`` lets the run go on without it.

    Args:
        attempt: the member's.
        doing: training, scoring or decoding.
        reason: in words.
    """

    def __init__(self, attempt: int, doing: str, reason: str) -> None:
        super().__init__(attempt, doing, reason)
        self.attempt, self.doing, self.reason = attempt, doing, reason

    def __str__(self) -> str:
        return f"member {self.attempt:02d} is lost while {self.doing}: {self.reason}"


class TrainingDiverged(UserError):
    """The loss of a training is not finite any more; the settings of that training have to change."""
