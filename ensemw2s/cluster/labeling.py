"""Supervisors on the connected cluster for a run that is trained already."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ensemw2s.cluster.actors import CoordinatorActor, in_words
from ensemw2s.cluster.placement import check_fits, plan_supervisors, threads_per_process
from ensemw2s.cluster.pool import RayPool
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pool import SupervisorPool

POLL_SECONDS = 0.5


@contextmanager
def supervisors(ctx: RunContext, n_members: int) -> Iterator[SupervisorPool]:
    """One supervisor a member, as far as the cluster has room; their progress goes to ``ctx.report``.

    Raises:
        ResourceError: the cluster can never hold them.
    """
    runtime = ctx.config.runtime
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    plan = plan_supervisors(runtime, n_members, ray.cluster_resources())
    check_fits(
        "the weak supervisors",
        plan.bundles,
        nodes,
        "runtime.supervisors, runtime.gpus_per_supervisor or runtime.cpus_per_supervisor",
    )
    cores = int(min((n["CPU"] for n in nodes if n.get("CPU")), default=1.0))
    threads = threads_per_process(runtime, plan.size, cores)
    # The coordinator runs no pipeline here: it keeps the workers' progress for the watcher.
    notes = (
        ray.remote(CoordinatorActor)
        .options(num_cpus=0)
        .remote(ctx.config, ctx.run_dir, plan, (threads, threads), ctx.store.storage)
    )
    # No quorum: without a member the others would give other labels.
    pool = RayPool(
        ctx.config,
        ctx.run_dir,
        plan,
        threads,
        notes,
        happened=lambda kind, **fields: ctx.say(in_words(kind, fields)),
        storage=ctx.store.storage,
    )
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ctx, notes, ended), daemon=True)
    watcher.start()
    try:
        yield pool
    finally:
        ended.set()
        watcher.join()
        pool.close()
        ray.kill(notes)


def _watch(ctx: RunContext, notes: Any, ended: threading.Event) -> None:
    seen, last = 0, False
    while not last:
        # One more look after the end: the last events may have come since.
        last = ended.wait(POLL_SECONDS)
        try:
            events = ray.get(notes.events.remote(seen), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            return
        seen += len(events)
        for event in events:
            ctx.report(event)
