"""Jobs submitted to real clusters of this machine, started by `ray start`, with and without token authentication."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ensemw2s.runs.status import read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MakeConfig = Callable[..., dict[str, Any]]
START_SECONDS, JOB_SECONDS = 180.0, 400.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(ready: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := ready():
            return value
        time.sleep(0.3)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s")


def environment(token: str | None) -> dict[str, str]:
    """What a node is started with: the environment's own programs first, and the authentication mode said."""
    values = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    values |= {"PATH": f"{BIN}{os.pathsep}{values['PATH']}", "OMP_NUM_THREADS": "1"}
    values |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
    return values | (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    )


@contextmanager
def node(token: str | None, *arguments: str) -> Iterator[None]:
    """A node with a temporary folder of its own (socket paths must be short); every process of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    command = [str(BIN / "ray"), "start", "--block", f"--temp-dir={folder}", *arguments]
    # Ports of other clusters on this machine stay theirs.
    command += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment(token), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:

        def started() -> bool:
            text = (folder / "start.log").read_text()
            if process.poll() is not None:
                raise RuntimeError(text[-2000:])
            return "Ray runtime started" in text

        until(started, START_SECONDS, "ray start")
        yield
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for member in [*family, process]:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait(timeout=30)
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """A head that gives no CPU away; `add` starts another node beside it."""

    def __init__(self, stack: ExitStack, token: str | None) -> None:
        from ray.job_submission import JobSubmissionClient

        self._stack, self._token = stack, token
        self._port, dashboard = free_port(), free_port()
        stack.enter_context(
            node(
                token,
                "--head",
                f"--port={self._port}",
                f"--ray-client-server-port={free_port()}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard}",
                "--num-cpus=0",
                "--num-gpus=0",
            )
        )
        self.url = f"http://127.0.0.1:{dashboard}"
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.client = JobSubmissionClient(self.url, headers=headers)

    def add(self, cpus: int) -> None:
        address = f"127.0.0.1:{self._port}"
        self._stack.enter_context(
            node(self._token, f"--address={address}", f"--num-cpus={cpus}", "--num-gpus=0")
        )

    def submit(self, entrypoint: str) -> str:
        name: str = self.client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)})
        return name

    def end(self, job: str) -> tuple[str, int | None, str]:
        """Status, exit code and log of a job that has ended."""
        until(lambda: self.client.get_job_status(job).is_terminal(), JOB_SECONDS, "the job")
        info = self.client.get_job_info(job)
        return info.status.value, info.driver_exit_code, self.client.get_job_logs(job)


@pytest.fixture
def config_file(make_tiny: MakeConfig, tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    on_ray = {"device": "cpu", "threads": 1, "supervisors": 1, "cpus_per_supervisor": 1.0}
    settings = {
        "boosting__prior": "unigram",
        "weak__training__learning_rate": 2e-2,
        # Long enough that a job is still at work when it is stopped after its first member.
        "weak__training__epochs": 60,
    }
    path.write_text(yaml.safe_dump(make_tiny(tmp_path, **settings, runtime=on_ray)), encoding="utf-8")
    return path


def test_without_a_token_a_refused_job_fails_with_its_one_line(config_file: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(stack, None)
        status, code, log = cluster.end(
            cluster.submit(f"python ray_jobs/pipeline.py --config {config_file} runs_dir=runs")
        )
    assert (status, code) == ("FAILED", 2)
    lines = log.strip().splitlines()
    assert lines[-1].startswith("error: runs_dir 'runs' lies in the job's copy of the working directory")
    assert "Traceback" not in log


@pytest.mark.long
def test_with_a_token_a_stopped_job_goes_on_when_it_is_submitted_again(
    config_file: Path, tmp_path: Path
) -> None:
    """The head has no CPU, so that members can only run on the second node."""
    import requests

    run_dir = tmp_path / "runs" / "tiny"
    command = f"python ray_jobs/boost.py --config {config_file}"
    with ExitStack() as stack:
        cluster = Cluster(stack, secrets.token_hex(16))
        assert requests.get(f"{cluster.url}/api/jobs/", timeout=30).status_code == 401
        cluster.add(cpus=2)

        first = cluster.submit(command)
        member = run_dir / "members" / "00"
        until(
            lambda: member.is_dir() or cluster.client.get_job_status(first).is_terminal(),
            JOB_SECONDS,
            "a member",
        )
        cluster.client.stop_job(first)
        status, _, log = cluster.end(first)
        assert status == "STOPPED", log
        assert "interrupted: what was committed is kept; the same command continues" in log
        stopped = read_status(run_dir)
        assert stopped.state == "stopped"
        assert "labels-ensemble" not in stopped.committed
        made = json.loads((member / "member.json").read_text())

        status, code, log = cluster.end(cluster.submit(command))
        assert (status, code) == ("SUCCEEDED", 0), log
    # Plain progress lines, then the table; the first member is the one made before the stop.
    assert "s] committed labels-ensemble" in log
    assert "committed prior-0" not in log
    assert "members   2 of 2" in log
    assert "\x1b[" not in log
    assert json.loads((member / "member.json").read_text()) == made
    assert read_status(run_dir).next == "train the strong model: ceiling"
