"""The applications on Ray Serve: a deployment for every member, and one that votes and speaks HTTP.

`build` is what a Serve configuration file imports (configs/serve.yaml):

    import_path: ensemw2s.serving.deployments:build
    args: {run: runs/demo, settings: {api_keys: keys.txt}}

Serve stops all deployments of an application at once. Where the members are an application of their own (`build_members`),
the vote can be replaced while they go on, and ends before they do.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from ray import serve
from ray.serve import Application

from ensemw2s.cluster.away import Away
from ensemw2s.cluster.placement import check_fits, threads_per_process
from ensemw2s.config import ExperimentConfig
from ensemw2s.config.base import NonNegativeFloat, PositiveFloat, Section, check_gpus
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.runs.mirror import Storage
from ensemw2s.serving.lanes import Desks
from ensemw2s.serving.opening import OpenedRun, open_run
from ensemw2s.serving.settings import ServeSettings

CALL_SECONDS = 600.0
"""a call to a member that takes longer counts as its death"""
SLACK = 256
"""requests beyond queue and concurrency that reach the application, to be told 429"""
CALLS = 256
"""calls that a member takes at a time; they are worked on one by one"""
BUSY = 0.75
"""the share of its places that a replica of the vote has taken when another copy is wanted"""


class Arguments(Section):
    """Arguments of :func:`build` and :func:`build_members`."""

    run: Path | str = Field(description="run directory, on storage that all nodes share, or its URI")
    models: tuple[Literal["ensemble", "student"], ...] | None = Field(
        None, description="default: all that there are"
    )
    settings: ServeSettings = ServeSettings()
    cpus_per_member: PositiveFloat = Field(0.25, description="logical CPUs that each member reserves")
    gpus_per_member: NonNegativeFloat | Literal["auto"] = Field(
        "auto",
        description="GPUs of each; auto: 1, less where there are fewer GPUs than members, 0 without any",
    )
    members: str | None = Field(
        None, description="application that holds the members (build_members); default: this one"
    )

    @model_validator(mode="after")
    def _gpus_are_given_so(self) -> Arguments:
        check_gpus("gpus_per_member", self.gpus_per_member)
        return self


class Member:
    """One member: its weights, the rows of those who vote, and nothing else.

    Args:
        config: of the run, with absolute paths.
        run_dir: the run directory; not looked at where there is a `storage`.
        ref: its weights.
        threads: torch threads.
        storage: where the run is, if it is not a folder.
        others: members of the same application; the first one stands for all of them, and does nothing with them.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        ref: ModelRef,
        threads: int,
        storage: Storage | None,
        *others: Any,
    ) -> None:
        from ensemw2s.serving.member import ServedSupervisor, beside, public_methods
        from ensemw2s.serving.members import quiet

        self._away = None if storage is None else Away(storage)
        if self._away is not None:
            run_dir = self._away.mirror.folder
            (ref,) = self._away.before("decode_facts", (ref,))
        supervisor = ServedSupervisor(config, run_dir, threads=threads, report=quiet)
        self._methods = public_methods()
        # Serve calls the replica ready when the weights are there.
        supervisor.decode_facts(ref)
        self._desks = Desks(lambda: beside(supervisor))
        # One thread: in order, and off the event loop, which answers health checks.
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def call(self, method: str, args: tuple[Any, ...], *, caller: str, rank: int) -> Any:
        """Run one method of the supervisor for a replica of the vote; `rank` has chosen this replica."""
        if method not in self._methods:
            raise ValueError(f"{method!r} is not what a member is asked")

        if self._away is not None:
            args = self._away.moved(args)

        def work() -> Any:
            return getattr(self._desks.of(caller), method)(*args)

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def ping(self, *, rank: int = 0) -> int:
        """The process, as a sign of life."""
        import os

        return os.getpid()


class Vote:
    """The vote and the HTTP interface.

    Args:
        run_dir: the run directory.
        models: served names.
        settings: limits.
        where: application and deployments of the members.
        threads: torch threads of this process, where it holds the members itself (``together``).
        members: them, where they belong to this application.
    """

    async def __init__(  # type: ignore[misc]
        self,
        run_dir: Path | str,
        models: tuple[str, ...],
        settings: ServeSettings,
        where: tuple[str, tuple[str, ...]] | None,
        threads: int | None,
        *members: Any,
    ) -> None:
        from ensemw2s.serving.backend import VoteBackend, local_backend
        from ensemw2s.serving.ray_members import ServeMembers

        log_requests()
        self._settings = settings
        caller = serve.get_replica_context().replica_id.unique_id

        def load() -> VoteBackend:
            if settings.together:
                return local_backend(open_run(run_dir, models), settings, threads)
            handles = members
            if where is not None:
                handles = tuple(serve.get_deployment_handle(name, where[0]) for name in where[1])
            found = ServeMembers(handles, CALL_SECONDS, caller=caller, rank=_own_rank)
            found.wait_ready()
            return VoteBackend(open_run(run_dir, models, lazy=True), found, settings)

        # Waits for the members, which must not hold up this replica's own event loop.
        self._backend = await asyncio.to_thread(load)

    def __serve_build_asgi_app__(self) -> Any:
        from ensemw2s.serving.app import build_app

        return build_app(self._backend, self._settings)


def _own_rank() -> int:
    rank: int = serve.get_replica_context().rank.rank
    return rank


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
    """The application that answers; runs on a connected cluster.

    Raises:
        UserError: the run or the settings cannot be served, or the members do not fit the cluster.
    """
    settings = arguments.settings
    run = _open(arguments)
    where: tuple[str, tuple[str, ...]] | None = None
    place, members = _Place(arguments.cpus_per_member, 0.0, None), []
    if settings.together:
        place = _place(arguments, run, settings.min_copies, "the copies of the vote")
    elif arguments.members is None:
        members = _members(arguments, run)
    else:
        where = (arguments.members, tuple(_names(run)))
    vote = serve.deployment(
        name="vote",
        max_ongoing_requests=settings.max_concurrent + settings.max_queue + SLACK,
        ray_actor_options={"num_cpus": place.cpus, "num_gpus": place.gpus},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        # An update starts the new vote, and stops the old one when the new one answers.
        max_surge_percent=100,
        **_copies(settings, BUSY * settings.max_concurrent),
        **_CARE,
    )(serve.ingress()(Vote))
    return vote.bind(run.place, tuple(run.ensembles), settings, where, place.threads, *members)


def build_members(arguments: Arguments) -> Application:
    """The members alone, for a vote in another application; asked by nobody else.

    Raises:
        UserError: as :func:`build`.
    """
    return _members(arguments, _open(arguments), together=True)[0]


def _open(arguments: Arguments) -> OpenedRun:
    arguments.settings.check_exposure()
    run = open_run(arguments.run, arguments.models, lazy=True)
    run.check_quorum(arguments.settings.quorum)
    return run


def _names(run: OpenedRun) -> list[str]:
    """Deployments of the members, slot by slot."""
    return [
        f"member-{name}" if len(ensemble.refs) == 1 else f"member-{name}-{place + 1}"
        for name, ensemble in run.ensembles.items()
        for place in range(len(ensemble.refs))
    ]


def _members(arguments: Arguments, run: OpenedRun, together: bool = False) -> list[Application]:
    """Members to be bound; `together`: the first one knows the others, so that it stands for an application."""
    settings = arguments.settings
    place = _place(arguments, run, len(run.refs) * settings.min_copies, "the members")
    member = serve.deployment(
        max_ongoing_requests=CALLS,
        ray_actor_options={"num_cpus": place.cpus, "num_gpus": place.gpus},
        graceful_shutdown_timeout_s=settings.drain_seconds + 10,
        graceful_shutdown_wait_loop_s=0.5,
        request_router_config={"request_router_class": "ensemw2s.serving.lanes.LaneRouter"},
        # Each busy replica of the vote has one call under way.
        **_copies(settings, 1.0),
        **_CARE,
    )(Member)
    bound: list[Application] = []
    for name, ref in reversed(list(zip(_names(run), run.refs, strict=True))):
        others = reversed(bound) if together and len(bound) == len(run.refs) - 1 else ()
        own = member.options(name=name)
        bound.append(
            own.bind(run.ctx.config, run.ctx.run_dir, ref, place.threads, run.ctx.store.storage, *others)
        )
    return bound[::-1]


@dataclass(frozen=True)
class _Place:
    """What a process that holds models reserves, and its torch threads."""

    cpus: float
    gpus: float
    threads: int | None


def _place(arguments: Arguments, run: OpenedRun, count: int, what: str) -> _Place:
    """The share of each of `count` processes.

    Raises:
        UserError: they do not fit the cluster.
    """
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    gpus = _gpus_per_member(arguments, run, count, nodes)
    resources = {"CPU": arguments.cpus_per_member, **({"GPU": gpus} if gpus else {})}
    check_fits(what, [resources] * count, nodes, "gpus_per_member or cpus_per_member")
    cores = int(min(n.get("CPU", 1.0) for n in nodes if n.get("CPU")))
    threads = threads_per_process(run.ctx.config.runtime, count, cores)
    return _Place(arguments.cpus_per_member, gpus, threads)


_CARE = {"health_check_period_s": 2, "max_constructor_retry_count": 3}


def _copies(settings: ServeSettings, busy: float) -> dict[str, Any]:
    """How many replicas; above `busy` requests on each of them there is another one."""
    least, most = settings.min_copies, settings.most_copies
    if least == most:
        return {"num_replicas": least}
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": busy}
    return {"autoscaling_config": scaling}


def _gpus_per_member(
    arguments: Arguments, run: OpenedRun, count: int, nodes: list[dict[str, float]]
) -> float:
    if arguments.gpus_per_member != "auto":
        return arguments.gpus_per_member
    runtime = run.ctx.config.runtime
    total = 0.0 if runtime.device == "cpu" else sum(n.get("GPU", 0.0) for n in nodes)
    if total < 1:
        return 0.0
    if runtime.gpus_per_supervisor != "auto":
        return runtime.gpus_per_supervisor
    # Members share GPUs where there are fewer: as many on each as come to an even spread.
    each = -(-count // int(total))
    return 1.0 if each == 1 else int(1000 / each) / 1000
