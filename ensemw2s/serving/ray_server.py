"""Ray Serve from the command line: join or start a cluster, deploy, wait, update, drain."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemw2s.cluster.runner import ray_session
from ensemw2s.errors import EnsemW2SError, UserError
from ensemw2s.serving.opening import open_run
from ensemw2s.serving.settings import ServeSettings

APPLICATION = "ensemw2s"
MEMBERS = f"{APPLICATION}-members-"
"""how the applications of members are called; those of two runs are there at a time while one replaces the other"""
DRAIN_SECONDS = 600.0
"""longer than anybody should set drain_seconds to"""


def serve_on_ray(run_dir: Path | str, models: tuple[str, ...] | None, settings: ServeSettings) -> None:
    """Deploy a run and keep it up until interrupted.

    Raises:
        UserError: it cannot be served, or the cluster is not there or too small.
        EnsemW2SError: the deployment failed.
    """
    if settings.port == 0:
        raise UserError("port 0 (a free one) is for --executor local: Ray Serve needs to be given a --port")
    run = open_run(run_dir, models, lazy=True)
    run.check_quorum(settings.quorum)
    with ray_session(run.ctx.config):
        started = deploy(run.place, tuple(run.ensembles), settings)
        print(settings.where(list(run.ensembles), settings.port), file=sys.stderr)
        try:
            threading.Event().wait()
        except (KeyboardInterrupt, SystemExit):
            print("draining", file=sys.stderr)
        finally:
            undeploy(started)


def update_on_ray(run_dir: Path | str, models: tuple[str, ...] | None, settings: ServeSettings) -> None:
    """Put a run in the place of the one that the cluster serves; the command that serves it goes on.

    Raises:
        UserError: nothing is served there, or the run cannot be.
        EnsemW2SError: the new run could not be deployed; the old one goes on answering.
    """
    run = open_run(run_dir, models, lazy=True)
    run.check_quorum(settings.quorum)
    with ray_session(run.ctx.config):
        update(run.place, tuple(run.ensembles), settings)
    print(f"now serving {' and '.join(run.ensembles)} of {run.ctx.store.place}", file=sys.stderr)


def deploy(run_dir: Path | str, models: tuple[str, ...], settings: ServeSettings) -> bool:
    """Put the applications on the connected cluster and wait until they answer.

    Returns:
        Whether Ray Serve was started for it, and so is to be shut down after it.

    Raises:
        UserError: an ensemble is served there already, or Ray Serve listens on another address.
        EnsemW2SError: the deployment failed.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    if APPLICATION in serve.status().applications:
        raise UserError(
            f"Ray Serve has an application {APPLICATION} on this cluster already: give --update to take its place, or stop "
            "the command or job that serves it (or serve shutdown)"
        )
    started = _get_global_client(raise_if_no_controller_running=False) is None
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
    )
    _check_address(settings)
    try:
        _put(run_dir, models, settings, first=True)
    except BaseException:
        undeploy(started)
        raise
    return started


def update(run_dir: Path | str, models: tuple[str, ...], settings: ServeSettings) -> None:
    """A rolling update: new members beside the old ones, then a new vote, then the old ones go.

    The old vote is stopped when the new one answers, and gets the time to end what it has taken; its members go after it.

    Raises:
        UserError: nothing is served there, or on another address.
        EnsemW2SError: the deployment failed.
    """
    from ray import serve

    if APPLICATION not in serve.status().applications:
        raise UserError(
            f"there is no application {APPLICATION} on this cluster to be updated: leave out --update, or name its cluster "
            "by RAY_ADDRESS"
        )
    _check_address(settings)
    old = _member_applications()
    _put(run_dir, models, settings, first=False)
    _wait(lambda: _only_running("vote"), "the replaced vote has not ended")
    for name in old:
        _delete(name)


def undeploy(shut_down: bool) -> None:
    """Take the vote away when what is under way has ended, then the members; their devices are free then.

    Args:
        shut_down: end Ray Serve, too, unless it has other applications.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    if APPLICATION in serve.status().applications:
        _delete(APPLICATION)
    for name in _member_applications():
        _delete(name)
    if shut_down and not serve.status().applications:
        serve.shutdown()


def _put(run_dir: Path | str, models: tuple[str, ...], settings: ServeSettings, *, first: bool) -> None:
    """New members, and a vote that asks them."""
    from ensemw2s.serving.deployments import Arguments, build, build_members

    if settings.together:
        _run((build(Arguments(run=run_dir, models=models, settings=settings)), APPLICATION, "/"))
        return
    members = MEMBERS + secrets.token_hex(4)
    arguments = Arguments(run=run_dir, models=models, settings=settings, members=members)
    try:
        if first:
            # The vote waits for its members: all processes load what they need at the same time.
            _run((build_members(arguments), members, None), (build(arguments), APPLICATION, "/"))
        else:
            # A vote that could not begin would be left to try for ever.
            _run((build_members(arguments), members, None))
            _run((build(arguments), APPLICATION, "/"))
    except BaseException:
        # A vote of before, if there is one, goes on with members of its own.
        _delete(members)
        raise


def _run(*applications: tuple[Any, str, str | None]) -> None:
    """Deploy applications, each with its name and route, and wait until they run."""
    from ray import serve

    targets = [serve.RunTarget(app, name=name, route_prefix=route) for app, name, route in applications]
    try:
        serve.run_many(targets)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise EnsemW2SError(f"Ray Serve could not deploy the run: {reason}") from error


def _check_address(settings: ServeSettings) -> None:
    """A Serve that runs already keeps its own address, whatever is asked for."""
    from ray.serve.context import _get_global_client

    options = _get_global_client().http_config
    if (options.host, options.port) != (settings.host, settings.port):
        raise UserError(
            f"Ray Serve listens on {options.host}:{options.port} on this cluster already: use that --host and --port, "
            "or shut it down (serve shutdown)"
        )


def _member_applications() -> list[str]:
    from ray import serve

    return [name for name in serve.status().applications if name.startswith(MEMBERS)]


def _only_running(deployment: str) -> bool:
    from ray import serve
    from ray.serve.schema import ReplicaState

    states = serve.status().applications[APPLICATION].deployments[deployment].replica_states
    return set(states) == {ReplicaState.RUNNING}


def _delete(name: str) -> None:
    """Take an application away and wait until its processes have ended."""
    from ray import serve

    serve.delete(name, _blocking=False)
    _wait(lambda: name not in serve.status().applications, f"{name} has not ended")


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise EnsemW2SError(f"{otherwise} within {DRAIN_SECONDS:g} s: see `serve status`")
        time.sleep(0.1)
