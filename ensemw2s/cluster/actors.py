"""The coordinator, an actor that runs the pipeline, and what it runs it with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemw2s.cluster.metrics import RunMetrics
from ensemw2s.cluster.placement import SupervisorPlan
from ensemw2s.cluster.pool import Happened, RayPool
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.lost import lost_attempts
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import ProgressEvent, StudentTask, TrainOutcome, Until
from ensemw2s.runs.mirror import Storage
from ensemw2s.runs.store import RunStore, run_store


class RayExecutor:
    """Supervisors as actors, the strong model with Ray Train and DeepSpeed."""

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        plan: SupervisorPlan,
        threads: tuple[int, int],
        coordinator: Any,
        happened: Happened,
        group_name: str = "",
        queue: Callable[[int], None] = lambda length: None,
        storage: Storage | None = None,
    ) -> None:
        self._config, self._run_dir, self._plan, self._storage = config, run_dir, plan, storage
        self._threads, self._coordinator, self._happened = threads, coordinator, happened
        self._store, self._group_name, self._queue = RunStore(run_dir), group_name, queue
        self._pool: RayPool | None = None

    @contextmanager
    def supervisors(self) -> Iterator[SupervisorPool]:
        if self._pool is None:
            self._pool = RayPool(
                self._config,
                self._run_dir,
                self._plan,
                self._threads[0],
                self._coordinator,
                quorum=self._config.runtime.quorum,
                members=lambda: self._config.boosting.rounds - len(lost_attempts(self._store)),
                happened=self._happened,
                queue=self._queue,
                group_name=self._group_name,
                storage=self._storage,
            )
        try:
            yield self._pool
        finally:
            if not self._config.runtime.keep_supervisors:
                self.close()

    def close(self) -> None:
        """Give the supervisors' devices back."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def train_students(self, tasks: Sequence[StudentTask], scratch: Path) -> Iterator[TrainOutcome]:
        from ensemw2s.cluster.strong import train_with_deepspeed

        yield from train_with_deepspeed(
            self._config, self._run_dir, tasks, scratch, self._threads[1], self._coordinator, self._storage
        )


class CoordinatorActor:
    """Runs the pipeline; holds token weights and member weights, and no model.

    Args:
        config: with absolute paths.
        run_dir: the run directory; not looked at where there is a `storage`.
        plan: the supervisors.
        threads: torch threads of a supervisor and of a strong worker.
        storage: where the run is, if it is not a folder.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        plan: SupervisorPlan,
        threads: tuple[int, int],
        storage: Storage | None = None,
    ) -> None:
        self._config, self._plan, self._threads, self._storage = config, plan, threads, storage
        self._run_dir = run_dir if storage is None else storage.folder()
        self._metrics = RunMetrics(config.name)
        self._events: list[ProgressEvent] = []
        self._guard = threading.Lock()

    def note(self, event: ProgressEvent) -> None:
        """Receive progress from a worker."""
        with self._guard:
            self._events.append(event)

    def events(self, since: int) -> list[ProgressEvent]:
        """Progress from event number `since` on."""
        with self._guard:
            return self._events[since:]

    def happened(self, kind: str, fields: dict[str, Any]) -> None:
        """Write down and tell what became of a worker."""
        RunStore(self._run_dir).event(kind, **fields)
        self._metrics.happened(kind)
        self.note(ProgressEvent(in_words(kind, fields), 0, 0))

    def run(
        self, own: Any, until: Until = "results", *, lock_seconds: float = 30.0, group_name: str = ""
    ) -> dict[str, Any]:
        """The pipeline; `own` is this actor's handle, for the workers' progress.

        `lock_seconds`: how long to wait for a process that holds the run; the lock of one that died may outlive it.
        `group_name`: of the supervisors' placement group.
        """
        from ensemw2s.cluster.strong import uses_gpu
        from ensemw2s.engine.context import RunContext
        from ensemw2s.engine.pipeline import Pipeline
        from ensemw2s.engine.sharing import share

        store = run_store(self._storage or self._run_dir, lazy=True)
        store.lock(lock_seconds)
        on_ray = RayExecutor(
            self._config,
            self._run_dir,
            self._plan,
            self._threads,
            own,
            lambda kind, **fields: self.happened(kind, fields),
            group_name,
            self._metrics.queue,
            self._storage,
        )
        try:
            ctx = RunContext(self._config, store, self.note, committed=self._metrics.stage)
            device = "cuda" if self._plan.gpus > 0 and self._config.runtime.device != "cpu" else "cpu"
            strong = "cuda" if uses_gpu(self._config) else "cpu"
            trainer = f"deepspeed {self._config.runtime.strong_workers} x {strong}"
            executor = share(on_ray, self._config, store, ctx.say, device=device, trainer=trainer)
            return Pipeline(ctx, executor).run(until)
        finally:
            on_ray.close()
            store.unlock()


def in_words(kind: str, fields: dict[str, Any]) -> str:
    """What became of a worker, for the log."""
    rest = ", ".join(f"{name} {value}" for name, value in fields.items())
    return f"{kind.replace('_', ' ')}: {rest}"
