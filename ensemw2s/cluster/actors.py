"""The actors: weak supervisors in a placement group, and the coordinator that runs the pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ensemw2s.cluster.placement import SupervisorPlan
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.pool import Pending, SupervisorPool
from ensemw2s.engine.tasks import ProgressEvent, StudentTask, TrainOutcome, Until
from ensemw2s.errors import EnsemW2SError, ResourceError, WorkerFailure

REPORT_EVERY_SECONDS = 0.5


class RemoteReport:
    """Sends progress to the coordinator, at most twice a second for each task; the last event of a task always goes."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._last: dict[str, float] = {}

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if event.done < event.total and now - self._last.get(event.task, 0.0) < REPORT_EVERY_SECONDS:
            return
        self._last[event.task] = now
        self._coordinator.note.remote(event)


class SupervisorActor:
    """A weak supervisor as a Ray actor; every public method of WeakSupervisor is called through `call`."""

    def __init__(self, config: ExperimentConfig, run_dir: Path, threads: int, coordinator: Any) -> None:
        from ensemw2s.engine.supervisor import WeakSupervisor

        self._supervisor = WeakSupervisor(config, run_dir, threads=threads, report=RemoteReport(coordinator))

    def call(self, method: str, *args: Any) -> Any:
        """Run one method."""
        return getattr(self._supervisor, method)(*args)


class RayPending:
    """A call under way."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> Any:
        try:
            return ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:
            raise unwrap(error) from error
        except ray.exceptions.RayActorError as error:
            raise WorkerFailure(
                f"a weak supervisor died more often than runtime.max_failures allows ({_first_line(error)}); "
                "run the same command to continue"
            ) from error


class RayPool:
    """Supervisor actors, one placement-group bundle each, started when the first work comes."""

    def __init__(
        self, config: ExperimentConfig, run_dir: Path, plan: SupervisorPlan, threads: int, coordinator: Any
    ) -> None:
        self.size = plan.size
        self._config, self._run_dir, self._plan = config, run_dir, plan
        self._threads, self._coordinator = threads, coordinator
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        if not self._actors:
            self._start()
        return RayPending(self._actors[slot % self.size].call.remote(method, *args))

    def _start(self) -> None:
        self._group = placement_group(self._plan.bundles, strategy="PACK")
        if not self._group.wait(timeout_seconds=300):
            self.close()
            raise ResourceError(
                f"the cluster is busy: {self.size} supervisors with {self._plan.bundles[0]} each were not placed in 300 s; wait, or lower "
                "runtime.supervisors"
            )
        failures = self._config.runtime.max_failures
        remote = ray.remote(SupervisorActor)
        for index in range(self.size):
            actor = remote.options(
                num_cpus=self._plan.cpus,
                num_gpus=self._plan.gpus,
                max_restarts=failures,
                max_task_retries=failures,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=index
                ),
            ).remote(self._config, self._run_dir, self._threads, self._coordinator)
            self._actors.append(actor)

    def close(self) -> None:
        """Give the devices back."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


class RayExecutor:
    """Supervisors as actors, the strong model with Ray Train and DeepSpeed."""

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        plan: SupervisorPlan,
        threads: tuple[int, int],
        coordinator: Any,
    ) -> None:
        self._config, self._run_dir, self._plan = config, run_dir, plan
        self._threads, self._coordinator = threads, coordinator

    @contextmanager
    def supervisors(self) -> Iterator[SupervisorPool]:
        pool = RayPool(self._config, self._run_dir, self._plan, self._threads[0], self._coordinator)
        try:
            yield pool
        finally:
            pool.close()

    def train_students(self, tasks: Sequence[StudentTask], scratch: Path) -> Iterator[TrainOutcome]:
        from ensemw2s.cluster.strong import train_with_deepspeed

        yield from train_with_deepspeed(
            self._config, self._run_dir, tasks, scratch, self._threads[1], self._coordinator
        )


class CoordinatorActor:
    """Runs the pipeline; holds token weights and member weights, and no model."""

    def __init__(
        self, config: ExperimentConfig, run_dir: Path, plan: SupervisorPlan, threads: tuple[int, int]
    ) -> None:
        self._config, self._run_dir, self._plan, self._threads = config, run_dir, plan, threads
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

    def run(self, own: Any, until: Until = "results") -> dict[str, Any]:
        """The pipeline; `own` is this actor's handle, for the workers' progress."""
        from ensemw2s.cluster.strong import uses_gpu
        from ensemw2s.engine.context import RunContext
        from ensemw2s.engine.pipeline import Pipeline
        from ensemw2s.engine.sharing import share
        from ensemw2s.runs.store import RunStore

        store = RunStore(self._run_dir)
        store.lock()
        try:
            ctx = RunContext(self._config, store, self.note)
            on_ray = RayExecutor(self._config, self._run_dir, self._plan, self._threads, own)
            device = "cuda" if self._plan.gpus > 0 and self._config.runtime.device != "cpu" else "cpu"
            strong = "cuda" if uses_gpu(self._config) else "cpu"
            trainer = f"deepspeed {self._config.runtime.strong_workers} x {strong}"
            executor = share(on_ray, self._config, store, ctx.say, device=device, trainer=trainer)
            return Pipeline(ctx, executor).run(until)
        finally:
            store.unlock()


def unwrap(error: ray.exceptions.RayTaskError) -> BaseException:
    """The error that the remote code raised, where it is one of ours; else the RayTaskError with its traceback."""
    cause = error.cause if isinstance(error.cause, BaseException) else None
    while isinstance(cause, ray.exceptions.RayTaskError) and isinstance(cause.cause, BaseException):
        cause = cause.cause
    return cause if isinstance(cause, EnsemW2SError) else error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
