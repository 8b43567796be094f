"""A run directory opened for work in this process, and supervisors for it here or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.runs.reading import begun_run
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths, load_config

if TYPE_CHECKING:
    from ensemw2s.engine.context import RunContext
    from ensemw2s.engine.pool import LocalExecutor, SupervisorPool

Show = Callable[[ProgressEvent], None]


def open_run(run_dir: Path | str | RunStore, progress: Show) -> RunContext:
    """A run that was begun, to read from: by its folder or URI, or opened already.

    Raises:
        RunDirectoryError: not a run directory.
    """
    from ensemw2s.engine.context import RunContext

    store = run_dir if isinstance(run_dir, RunStore) else begun_run(run_dir)
    config = load_config(store.folder / "config.yaml", [])
    return RunContext(absolute_paths(config), store, progress)


@contextmanager
def locked_run(config: ExperimentConfig, place: Path | RunStore, progress: Show) -> Iterator[RunContext]:
    """A run, or the beginning of one, that this process alone writes meanwhile; in a folder, or opened already.

    Raises:
        RunDirectoryError: another process holds it.
    """
    from ensemw2s.engine.context import RunContext

    store = RunStore(place) if isinstance(place, Path) else place
    store.lock()
    try:
        yield RunContext(config, store, progress)
    finally:
        store.unlock()


def local_executor(ctx: RunContext) -> LocalExecutor:
    """Who does the work in this process, with the configured threads."""
    from ensemw2s.engine.pool import LocalExecutor

    threads = ctx.config.runtime.threads
    count = (os.cpu_count() or 1) if threads == "auto" else threads
    return LocalExecutor(ctx.config, ctx.run_dir, threads=count, report=ctx.report, mirror=ctx.store.mirror)


@contextmanager
def supervisors(ctx: RunContext, at_most: int) -> Iterator[SupervisorPool]:
    """Supervisors where ``runtime.executor`` says: one in this process, or on Ray one for each of `at_most` tasks.

    Raises:
        ResourceError: the cluster cannot be reached, or can never hold them.
    """
    if ctx.config.runtime.executor == "local":
        yield local_executor(ctx).pool()
        return
    from ensemw2s.cluster.labeling import supervisors as on_ray
    from ensemw2s.cluster.runner import ray_session

    with ray_session(ctx.config), on_ray(ctx, at_most) as pool:
        yield pool
