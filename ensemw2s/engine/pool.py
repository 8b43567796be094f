"""Who calls the supervisors: the interface, and the executor that calls them in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent, StudentTask, TrainOutcome
from ensemw2s.runs.mirror import Mirror

Report = Callable[[ProgressEvent], None]


class Pending(Protocol):
    """Work that was handed to a supervisor."""

    def result(self) -> Any:
        """Wait for it; raises what the work raised."""


class SupervisorPool(Protocol):
    """`size` supervisors; each does its work in the order in which it was submitted."""

    size: int

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        """Call a method of :class:`ensemw2s.engine.supervisor.WeakSupervisor` on supervisor ``slot % size``."""


class Executor(Protocol):
    """Where supervisors and the strong model's training run."""

    def supervisors(self) -> AbstractContextManager[SupervisorPool]:
        """Supervisors for the duration of the context; their devices are free again after it."""

    def train_students(self, tasks: Sequence[StudentTask], scratch: Path) -> Iterator[TrainOutcome]:
        """Fine-tune the strong model once a task and write it to ``task.output``; an outcome when each is written.

        Args:
            tasks: those of a group that are not committed yet, in order.
            scratch: folder for what the group shares; the same call after a crash goes on from it.
        """


@dataclass(frozen=True)
class Done:
    """Finished work."""

    value: Any

    def result(self) -> Any:
        return self.value


class LocalPool:
    """One supervisor in this process, made when the first work comes; work is done when it is submitted."""

    size = 1

    def __init__(self, make_supervisor: Callable[[], Any]) -> None:
        self._make = make_supervisor
        self._supervisor: Any = None

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        if self._supervisor is None:
            self._supervisor = self._make()
        return Done(getattr(self._supervisor, method)(*args))

    def close(self) -> None:
        """Let go of the supervisor and its models: what comes next needs the device's memory."""
        if self._supervisor is None:
            return
        from ensemw2s.models.memory import free_device_memory

        self._supervisor = None
        free_device_memory()


class LocalExecutor:
    """Everything in one process, without Ray and DeepSpeed.

    Args:
        config: with absolute paths.
        run_dir: the run directory.
        threads: torch threads.
        report: receives progress.
        mirror: the storage that the run directory is a copy of.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        *,
        threads: int,
        report: Report,
        mirror: Mirror | None = None,
    ) -> None:
        self._config, self._run_dir, self._threads, self._report = config, run_dir, threads, report
        self._mirror = mirror

    def _supervisor(self) -> Any:
        from ensemw2s.engine.supervisor import WeakSupervisor

        return WeakSupervisor(
            self._config, self._run_dir, threads=self._threads, report=self._report, mirror=self._mirror
        )

    @contextmanager
    def supervisors(self) -> Iterator[SupervisorPool]:
        pool = self.pool()
        try:
            yield pool
        finally:
            pool.close()

    def pool(self) -> LocalPool:
        """The supervisor of this process."""
        return LocalPool(self._supervisor)

    def train_students(self, tasks: Sequence[StudentTask], scratch: Path) -> Iterator[TrainOutcome]:
        for task in tasks:
            yield self._supervisor().train_student(task)
