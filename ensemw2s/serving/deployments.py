"""The application on Ray Serve: a deployment for every member, and one that votes and speaks HTTP.

`build` is what a Serve configuration file imports (configs/serve.yaml):

    import_path: ensemw2s.serving.deployments:build
    args: {run: runs/demo, settings: {api_keys: keys.txt}}
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from ensemw2s.cluster.placement import check_fits, threads_per_process
from ensemw2s.config import ExperimentConfig
from ensemw2s.config.base import NonNegativeFloat, PositiveFloat, Section
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.serving.opening import OpenedRun, open_run
from ensemw2s.serving.settings import ServeSettings

CALL_SECONDS = 600.0
"""a call to a member that takes longer counts as its death"""
SLACK = 256
"""requests beyond queue and concurrency that reach the application, to be told 429"""


class Arguments(Section):
    """Arguments of :func:`build`."""

    run: Path = Field(description="run directory, on storage that all nodes share")
    models: tuple[Literal["ensemble", "student"], ...] | None = Field(
        None, description="default: all that there are"
    )
    settings: ServeSettings = ServeSettings()
    cpus_per_member: PositiveFloat = Field(0.25, description="logical CPUs that each member reserves")
    gpus_per_member: NonNegativeFloat | Literal["auto"] = Field(
        "auto",
        description="GPUs of each; auto: 1, less where there are fewer GPUs than members, 0 without any",
    )


class Member:
    """One member: its weights, its rows, and nothing else."""

    def __init__(self, config: ExperimentConfig, run_dir: Path, ref: ModelRef, threads: int) -> None:
        from ensemw2s.serving.member import ServedSupervisor, public_methods
        from ensemw2s.serving.members import quiet

        self._supervisor = ServedSupervisor(config, run_dir, threads=threads, report=quiet)
        self._methods = public_methods()
        # Serve calls the replica ready when the weights are there.
        self._supervisor.decode_facts(ref)
        # One thread: in order, and off the event loop, which answers health checks.
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Run one method of the supervisor."""
        if method not in self._methods:
            raise ValueError(f"{method!r} is not what a member is asked")
        work = getattr(self._supervisor, method)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def ping(self) -> int:
        """The process, as a sign of life."""
        import os

        return os.getpid()


class Vote:
    """The vote and the HTTP interface."""

    async def __init__(  # type: ignore[misc]
        self, run_dir: Path, models: tuple[str, ...], settings: ServeSettings, *handles: DeploymentHandle
    ) -> None:
        from ensemw2s.serving.backend import VoteBackend
        from ensemw2s.serving.ray_members import ServeMembers

        log_requests()
        self._settings = settings

        def load() -> VoteBackend:
            members = ServeMembers(handles, CALL_SECONDS)
            members.wait_ready()
            return VoteBackend(open_run(run_dir, models), members, settings)

        # Waits for the members, which must not hold up this replica's own event loop.
        self._backend = await asyncio.to_thread(load)

    def __serve_build_asgi_app__(self) -> Any:
        from ensemw2s.serving.app import build_app

        self._app = build_app(self._backend, self._settings)
        return self._app

    async def drain(self) -> bool:
        """Take nothing new and wait for what is under way; whether it ended in time.

        Deleting an application stops all of its deployments at once, the members first: this comes before it.
        """
        drained: bool = await self._app.state.admission.drain(self._settings.drain_seconds)
        return drained


def log_requests() -> None:
    """Write a line a request to the replica's own log; Ray gives the loggers of an application no handler."""
    logger = logging.getLogger("ensemw2s.serving")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    logger.propagate = False


def build(arguments: Arguments) -> Application:
    """The Serve application of a run; runs on a connected cluster.

    Raises:
        UserError: the run or the settings cannot be served, or the members do not fit the cluster.
    """
    import ray

    settings = arguments.settings
    settings.check_exposure()
    run = open_run(arguments.run, arguments.models)
    run.check_quorum(settings.quorum)
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    gpus = _gpus_per_member(arguments, run, nodes)
    resources = {"CPU": arguments.cpus_per_member, **({"GPU": gpus} if gpus else {})}
    count = len(run.refs)
    check_fits("the members", [resources] * count, nodes, "gpus_per_member or cpus_per_member")
    cores = int(min(n.get("CPU", 1.0) for n in nodes if n.get("CPU")))
    threads = threads_per_process(run.ctx.config.runtime, count, cores)
    member = serve.deployment(
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": arguments.cpus_per_member, "num_gpus": gpus},
        graceful_shutdown_timeout_s=settings.drain_seconds + 10,
        health_check_period_s=2,
        max_constructor_retry_count=3,
    )(Member)
    handles = []
    for name, ensemble in run.ensembles.items():
        for place, ref in enumerate(ensemble.refs):
            label = name if len(ensemble.refs) == 1 else f"{name}-{place + 1}"
            bound = member.options(name=f"member-{label}")
            handles.append(bound.bind(run.ctx.config, run.ctx.run_dir, ref, threads))
    vote = serve.deployment(
        name="vote",
        max_ongoing_requests=settings.max_concurrent + settings.max_queue + SLACK,
        ray_actor_options={"num_cpus": arguments.cpus_per_member},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=2,
        max_constructor_retry_count=3,
    )(serve.ingress()(Vote))
    return vote.bind(run.ctx.run_dir, tuple(run.ensembles), settings, *handles)


def _gpus_per_member(arguments: Arguments, run: OpenedRun, nodes: list[dict[str, float]]) -> float:
    if arguments.gpus_per_member != "auto":
        return arguments.gpus_per_member
    runtime = run.ctx.config.runtime
    total = 0.0 if runtime.device == "cpu" else sum(n.get("GPU", 0.0) for n in nodes)
    if total < 1:
        return 0.0
    if runtime.gpus_per_supervisor != "auto":
        return runtime.gpus_per_supervisor
    # Members share GPUs where there are fewer: as many on each as come to an even spread.
    each = -(-len(run.refs) // int(total))
    return 1.0 if each == 1 else int(1000 / each) / 1000
