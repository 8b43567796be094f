"""Running the pipeline on Ray: start or join a cluster, check that it holds the run, watch the coordinator."""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ensemw2s.cluster.address import why_unreachable
from ensemw2s.cluster.failures import FailureCounts, FailureLimits, decide
from ensemw2s.cluster.placement import SupervisorPlan, check_fits, plan_supervisors, threads_per_process
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.prepare import Prepared
from ensemw2s.engine.tasks import ProgressEvent, Until
from ensemw2s.errors import ResourceError, WorkerFailure
from ensemw2s.runs.store import RunStore

POLL_SECONDS = 0.5
LOCK_SECONDS = 180.0
"""for the lock of a coordinator that died; that of a machine that is gone ends with its lease"""


@contextmanager
def ray_session(config: ExperimentConfig) -> Iterator[None]:
    """Join the configured cluster, or start one on this machine and end it afterwards.

    Raises:
        ResourceError: the cluster at runtime.ray_address does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without a dashboard Ray Train warns about its own state every few seconds.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    address = config.runtime.ray_address or os.environ.get("RAY_ADDRESS")
    reason = why_unreachable(address) if address else None
    if reason is not None:
        raise ResourceError(
            f"{reason}; start the cluster (ray start --head), correct runtime.ray_address and RAY_ADDRESS, or use "
            "runtime.executor=local"
        )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"at {address}" if address else "on this machine"
        raise ResourceError(
            f"no Ray cluster {where}: {str(error).strip().splitlines()[0]}; check runtime.ray_address and RAY_ADDRESS, "
            "or use runtime.executor=local"
        ) from error
    if handler is not None and threading.current_thread() is threading.main_thread():
        # Ray's own handler ends the process at once, with the addresses of a C++ stack as the last words.
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def dashboard_link() -> str | None:
    """Address of the connected cluster's dashboard, as seen from its head; None where there is none."""
    import ray
    from ray._private.worker import get_dashboard_url

    try:
        url = get_dashboard_url()
    except (AttributeError, ray.exceptions.RaySystemError):
        # A connection through a Ray client.
        return None
    return f"http://{url}" if url else None


def check_cluster(config: ExperimentConfig) -> tuple[SupervisorPlan, tuple[int, int]]:
    """Supervisors and threads of a run on the connected cluster.

    Returns:
        the supervisors' plan, and torch threads of (a supervisor, a strong worker).

    Raises:
        ResourceError: the cluster can never hold them.
    """
    import ray

    from ensemw2s.cluster.strong import uses_gpu

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    runtime = config.runtime
    plan = plan_supervisors(runtime, config.boosting.rounds, ray.cluster_resources())
    if min(runtime.member_workers, plan.size) > 1 and 0 < plan.gpus < 1:
        raise ResourceError(
            f"runtime.member_workers {runtime.member_workers}: supervisors with {plan.gpus:g} GPU each (runtime.gpus_per_supervisor) may "
            "share one, and NCCL lets only processes with a GPU of their own train together: set runtime.gpus_per_supervisor=1, or "
            "leave out runtime.member_workers"
        )
    check_fits(
        "the weak supervisors",
        plan.bundles,
        nodes,
        "runtime.supervisors, runtime.gpus_per_supervisor or runtime.cpus_per_supervisor",
    )
    worker = {"CPU": runtime.cpus_per_strong_worker}
    if uses_gpu(config):
        worker["GPU"] = 1.0
    check_fits(
        "the strong model's workers",
        [worker] * runtime.strong_workers,
        nodes,
        "runtime.strong_workers or runtime.cpus_per_strong_worker",
    )
    if runtime.keep_supervisors:
        check_fits(
            "the weak supervisors and the strong model's workers at a time (runtime.keep_supervisors)",
            [*plan.bundles, *[worker] * runtime.strong_workers],
            nodes,
            "runtime.supervisors, or leave out runtime.keep_supervisors",
        )
    cores = int(min((n["CPU"] for n in nodes if n.get("CPU")), default=1.0))
    return plan, (
        threads_per_process(runtime, plan.size, cores),
        threads_per_process(runtime, runtime.strong_workers, cores),
    )


def run_on_ray(
    prepared: Prepared,
    plan: SupervisorPlan,
    threads: tuple[int, int],
    show: Callable[[ProgressEvent], None],
    until: Until = "results",
) -> dict[str, Any]:
    """Run the pipeline in a coordinator actor and show its progress; returns the results.

    A coordinator that dies is made again, up to runtime.max_failures times; the run goes on from what is committed.

    Raises:
        WorkerFailure: it died more often.
    """
    from ray.exceptions import RayActorError, RayTaskError

    from ensemw2s.cluster.actors import in_words
    from ensemw2s.cluster.remote_errors import first_line, unwrap

    link = dashboard_link()
    if link is not None:
        show(ProgressEvent(f"Ray dashboard: {link}", 0, 0))
    limits = FailureLimits(prepared.absolute.runtime.max_failures, 0.0)
    restarts = 0
    while True:
        try:
            return _run_once(prepared, plan, threads, show, until, LOCK_SECONDS if restarts else 30.0)
        except RayTaskError as error:
            raise unwrap(error) from error
        except RayActorError as error:
            if decide("actor_died", FailureCounts(restarts, 0.0, 1), limits) != "retry":
                raise WorkerFailure(
                    f"the coordinator died ({first_line(error)}): run the same command to continue from the last committed stage"
                ) from error
            restarts += 1
            RunStore(prepared.run_dir).event("coordinator_restarted", restarts=restarts)
            show(ProgressEvent(in_words("coordinator_restarted", {"restarts": restarts}), 0, 0))


def _run_once(
    prepared: Prepared,
    plan: SupervisorPlan,
    threads: tuple[int, int],
    show: Callable[[ProgressEvent], None],
    until: Until,
    lock_seconds: float,
) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ensemw2s.cluster.actors import CoordinatorActor
    from ensemw2s.cluster.pool import remove_group

    # Beside the driver, which the run cannot do without either: the loss of another node then costs no more than its members.
    # A soft affinity is not kept to by Ray 2.60 for an actor without CPUs.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Threads of the coordinator: the pipeline, the watching driver, the workers' progress, and what became of them.
    coordinator = (
        ray.remote(CoordinatorActor)
        .options(num_cpus=0, max_concurrency=4, scheduling_strategy=here)
        .remote(prepared.absolute, prepared.run_dir, plan, threads, prepared.storage)
    )
    group = f"ensemw2s-{uuid.uuid4().hex}"
    running = coordinator.run.remote(coordinator, until, lock_seconds=lock_seconds, group_name=group)
    seen = 0
    try:
        while True:
            finished, _ = ray.wait([running], timeout=POLL_SECONDS)
            try:
                events = ray.get(coordinator.events.remote(seen))
            except ray.exceptions.ActorUnavailableError:
                # The run's own call tells whether it is dead.
                events = []
            seen += len(events)
            for event in events:
                show(event)
            if finished:
                results: dict[str, Any] = ray.get(running)
                return results
    finally:
        if ray.is_initialized():
            # Its supervisors and trainers end with it.
            ray.kill(coordinator)
            remove_group(group)
