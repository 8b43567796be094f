"""Ray Serve from the command line: join or start a cluster, deploy, wait, drain."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ensemw2s.cluster.runner import ray_session
from ensemw2s.errors import EnsemW2SError, UserError
from ensemw2s.serving.command import announce
from ensemw2s.serving.opening import open_run
from ensemw2s.serving.settings import ServeSettings

APPLICATION = "ensemw2s"
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
    run = open_run(run_dir, models)
    run.check_quorum(settings.quorum)
    with ray_session(run.ctx.config):
        started = deploy(run.ctx.run_dir, tuple(run.ensembles), settings)
        announce(list(run.ensembles), settings, settings.port)
        try:
            threading.Event().wait()
        except (KeyboardInterrupt, SystemExit):
            print("draining", file=sys.stderr)
        finally:
            undeploy(started)


def deploy(run_dir: Path, models: tuple[str, ...], settings: ServeSettings) -> bool:
    """Put the application on the connected cluster and wait until it answers.

    Returns:
        Whether Ray Serve was started for it, and so is to be shut down after it.

    Raises:
        UserError: an ensemble is served there already, or Ray Serve listens on another address.
        EnsemW2SError: the deployment failed.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    from ensemw2s.serving.deployments import Arguments, build

    if APPLICATION in serve.status().applications:
        raise UserError(
            f"Ray Serve has an application {APPLICATION} on this cluster already: stop the command or job that serves it, "
            "or shut it down (serve shutdown)"
        )
    started = _get_global_client(raise_if_no_controller_running=False) is None
    application = build(Arguments(run=run_dir, models=models, settings=settings))
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port},
    )
    # A Serve that runs already keeps its own address, whatever is asked for.
    options = _get_global_client().http_config
    if (options.host, options.port) != (settings.host, settings.port):
        raise UserError(
            f"Ray Serve listens on {options.host}:{options.port} on this cluster already: use that --host and --port, "
            "or shut it down (serve shutdown)"
        )
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except BaseException as error:
        undeploy(started)
        if not isinstance(error, RuntimeError):
            raise
        raise EnsemW2SError(
            f"Ray Serve could not deploy the run: {str(error).strip().splitlines()[0]}"
        ) from error
    return started


def undeploy(shut_down: bool) -> None:
    """Take the application away when what is under way has ended; its devices are free then.

    Args:
        shut_down: end Ray Serve, too, unless it has other applications.
    """
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ReplicaState

    if not ray.is_initialized():
        return
    application = serve.status().applications.get(APPLICATION)
    if application is not None:
        vote = application.deployments.get("vote")
        # One that does not run yet has nothing under way, and the call would wait for it.
        if vote is not None and vote.replica_states.get(ReplicaState.RUNNING):
            try:
                serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=DRAIN_SECONDS)
            except (RayServeException, ray.exceptions.RayError, TimeoutError) as error:
                print(f"requests under way may be lost: {type(error).__name__}", file=sys.stderr)
        serve.delete(APPLICATION)
    if shut_down and not serve.status().applications:
        serve.shutdown()
