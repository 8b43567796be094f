"""The application on a real Ray Serve: a process for each member, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BODY = {"model": "ensemble", "prompt": "Question: the cat in the barn\nAnswer:", "temperature": 0}
SECONDS = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url(ray_cluster: None, served_run: Path) -> Iterator[str]:
    from ensemw2s.serving.ray_server import deploy, undeploy
    from ensemw2s.serving.settings import ServeSettings

    port = free_port()
    started = deploy(served_run, ("ensemble",), ServeSettings(port=port, quorum=1, drain_seconds=20.0))
    yield f"http://127.0.0.1:{port}"
    undeploy(started)


def member_pid(name: str) -> int:
    from ray import serve

    (application,) = (a for a in serve.status().applications if a.startswith("ensemw2s-members-"))
    handle = serve.get_deployment_handle(name, app_name=application)
    pid: int = handle.ping.remote().result(timeout_s=SECONDS)
    return pid


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def post(url: str, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(url + path, json=body, timeout=SECONDS)


def test_it_votes_and_survives_the_death_of_a_member(url: str, client: Any) -> None:
    # The same application in this process says the same.
    whole = {**BODY, "max_tokens": 20, "logprobs": 2}
    answer = post(url, "/v1/completions", whole)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ensemw2s-members"] == "2/2"
    here = client.post("/v1/completions", whole).json()["choices"][0]
    there = answer.json()["choices"][0]
    assert there["text"] == here["text"]
    logs = [choice["logprobs"]["token_logprobs"] for choice in (there, here)]
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)
    label = {"input": {"question": "the hen in the den", "choices": ["hiss low", "roar far"]}}
    served, local = post(url, "/v1/label", label).json(), client.post("/v1/label", label).json()
    # Other numbers of threads may change the last bit.
    scores = [answers["data"][0].pop("scores") for answers in (served, local)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert served["data"][0]["votes"] == local["data"][0]["votes"]

    # A member dies in the middle of an answer: the others go on, and the answer says so.
    pid = member_pid("member-ensemble-2")
    statuses: list[tuple[int, dict[str, Any]]] = []

    def ask() -> None:
        got = post(url, "/v1/completions", {**BODY, "max_tokens": 110})
        statuses.append((got.status_code, got.json()))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: "ensemw2s_rows 1.0" in httpx2.get(url + "/metrics", timeout=SECONDS).text)
    os.kill(pid, signal.SIGKILL)
    asking.join(SECONDS)
    assert [status for status, _ in statuses] == [200]
    assert statuses[0][1]["usage"]["completion_tokens"] == 110
    assert statuses[0][1]["ensemw2s"] == {"members": 2, "voted": 1}

    # Serve replaces it; then both vote again.
    wait_until(lambda: member_pid("member-ensemble-2") != pid)
    wait_until(
        lambda: httpx2.get(url + "/health", timeout=SECONDS).json()["models"]["ensemble"]["alive"] == 2
    )
    again = post(url, "/v1/completions", whole)
    assert again.headers["x-ensemw2s-members"] == "2/2"
    # What was drafted before changes how many tokens are read at a time, and with that the last bits.
    once_more = again.json()["choices"][0]
    assert once_more["text"] == there["text"]
    assert once_more["logprobs"]["token_logprobs"] == pytest.approx(logs[0], abs=1e-5)


def test_a_client_that_goes_away_frees_its_rows(url: str) -> None:
    body = {**BODY, "max_tokens": 110, "stream": True, "n": 4, "temperature": 1.0}
    with httpx2.stream("POST", url + "/v1/completions", json=body, timeout=SECONDS) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    metrics: Callable[[], str] = lambda: httpx2.get(url + "/metrics", timeout=SECONDS).text  # noqa: E731
    wait_until(lambda: "ensemw2s_rows 0.0" in metrics() and "requests_active 0.0" in metrics())


def test_a_second_server_is_refused_and_the_first_one_stays(
    url: str, served_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemw2s.errors import UserError
    from ensemw2s.serving import ray_server
    from ensemw2s.serving.settings import ServeSettings

    with pytest.raises(UserError, match="an application ensemw2s on this cluster already"):
        ray_server.deploy(served_run, ("student",), ServeSettings(port=int(url.rpartition(":")[2])))
    monkeypatch.setattr(ray_server, "APPLICATION", "another")
    with pytest.raises(UserError, match="listens on"):
        ray_server.deploy(served_run, ("ensemble",), ServeSettings(port=free_port()))
    assert httpx2.get(url + "/v1/models", timeout=SECONDS).json()["data"][0]["id"] == "ensemble"


def test_a_rolling_update_loses_no_request(url: str, served_run: Path) -> None:
    """Requests of one kind after another, long ones among them, while the ensemble is replaced by another."""
    from ensemw2s.serving.ray_server import update
    from ensemw2s.serving.settings import ServeSettings

    before = member_pid("member-ensemble-1")
    ended, answers = threading.Event(), []

    def ask(tokens: int) -> None:
        while not ended.is_set():
            answers.append(post(url, "/v1/completions", {**BODY, "max_tokens": tokens}))

    asking = [threading.Thread(target=ask, args=(tokens,)) for tokens in (2, 110)]
    for thread in asking:
        thread.start()
    try:
        update(served_run, ("ensemble",), ServeSettings(port=int(url.rpartition(":")[2]), max_n=2))
    finally:
        ended.set()
        for thread in asking:
            thread.join(SECONDS)
    assert {a.status_code for a in answers} == {200}
    texts = {(a.json()["usage"]["completion_tokens"], a.json()["choices"][0]["text"]) for a in answers}
    # Whoever decoded it, and on whichever rows: every answer is that of all members.
    assert len(texts) == 2
    assert {a.headers["x-ensemw2s-members"] for a in answers} == {"2/2"}
    assert member_pid("member-ensemble-1") != before
    assert post(url, "/v1/completions", {**BODY, "n": 3}).status_code == 400


def test_what_is_under_way_is_finished_when_the_application_is_taken_away(url: str) -> None:
    from ensemw2s.serving.ray_server import undeploy

    answers: list[httpx2.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(post(url, "/v1/completions", {**BODY, "max_tokens": 110}))
    )
    asking.start()
    wait_until(lambda: "ensemw2s_rows 1.0" in httpx2.get(url + "/metrics", timeout=SECONDS).text)
    undeploy(False)
    asking.join(SECONDS)
    assert [a.status_code for a in answers] == [200]
    assert answers[0].json()["usage"]["completion_tokens"] == 110


@pytest.mark.long
def test_two_copies_share_the_requests(url: str, served_run: Path, client: Any) -> None:
    """Both answer as one does, though each decodes on members of its own."""
    from ray import serve

    from ensemw2s.serving.ray_server import APPLICATION, deploy, undeploy
    from ensemw2s.serving.settings import ServeSettings

    if APPLICATION in serve.status().applications:
        # Of the tests before, where they have not taken it away.
        undeploy(False)
    settings = ServeSettings(port=int(url.rpartition(":")[2]), min_copies=2, drain_seconds=20.0)
    deploy(served_run, ("ensemble",), settings)
    try:
        (members,) = (a for a in serve.status().applications if a.startswith("ensemw2s-members-"))
        found = {
            f"{app}/{name}": sum(deployment.replica_states.values())
            for app in (APPLICATION, members)
            for name, deployment in serve.status().applications[app].deployments.items()
        }
        assert found == {
            f"{APPLICATION}/vote": 2,
            f"{members}/member-ensemble-1": 2,
            f"{members}/member-ensemble-2": 2,
        }
        handle = serve.get_deployment_handle("member-ensemble-1", app_name=members)
        pids = [handle.ping.remote(rank=rank).result(timeout_s=SECONDS) for rank in (0, 1, 2)]
        assert pids[0] == pids[2] != pids[1]

        body = {**BODY, "max_tokens": 40}
        answers: list[httpx2.Response] = []
        asking = [
            threading.Thread(target=lambda: answers.append(post(url, "/v1/completions", body)))
            for _ in range(12)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(SECONDS)
        assert [a.status_code for a in answers] == [200] * 12
        expected = client.post("/v1/completions", body).json()["choices"]
        assert [a.json()["choices"] for a in answers] == [expected] * 12
        # Each copy counts what it has answered: not one of them all.
        wait_until(lambda: 0 < completions_of_a_copy(url) < 12)
    finally:
        undeploy(False)


@pytest.mark.long
def test_copies_come_with_load(url: str, served_run: Path, client: Any) -> None:
    """The vote gets a second copy when the first one is busy, and then the members; every answer is the same."""
    from ensemw2s.serving.ray_server import deploy, undeploy
    from ensemw2s.serving.settings import ServeSettings

    settings = ServeSettings(
        port=int(url.rpartition(":")[2]), max_copies=2, max_concurrent=4, drain_seconds=20.0
    )
    undeploy(False)
    deploy(served_run, ("ensemble",), settings)
    answers: list[httpx2.Response] = []
    enough = threading.Event()
    body = {**BODY, "max_tokens": 110}

    def ask() -> None:
        while not enough.is_set():
            answers.append(post(url, "/v1/completions", body))

    asking = [threading.Thread(target=ask) for _ in range(12)]
    try:
        assert set(running_copies().values()) == {1}
        for thread in asking:
            thread.start()
        wait_until(lambda: set(running_copies().values()) == {2}, seconds=300.0)
        enough.set()
        for thread in asking:
            thread.join(SECONDS)
        assert {answer.status_code for answer in answers} == {200}
        expected = client.post("/v1/completions", body).json()["choices"]
        assert all(answer.json()["choices"] == expected for answer in answers)
    finally:
        enough.set()
        undeploy(False)


def running_copies() -> dict[str, int]:
    """Deployments of the vote and of the members, and how many replicas of each are at work."""
    from ray import serve
    from ray.serve.schema import ReplicaState

    return {
        name: deployment.replica_states.get(ReplicaState.RUNNING, 0)
        for application in serve.status().applications.values()
        for name, deployment in application.deployments.items()
    }


def completions_of_a_copy(url: str) -> int:
    text = httpx2.get(url + "/metrics", timeout=SECONDS).text
    found = re.search(r'^ensemw2s_requests_total\{.*"/v1/completions".* ([\d.]+)$', text, re.MULTILINE)
    return 0 if found is None else int(float(found.group(1)))


def test_members_in_one_process(ray_cluster: None, served_run: Path, client: Any) -> None:
    """One deployment, the same answer."""
    from ray import serve
    from ray.serve.context import _get_global_client

    from ensemw2s.serving.ray_server import deploy, undeploy
    from ensemw2s.serving.settings import ServeSettings

    running = _get_global_client(raise_if_no_controller_running=False)
    port = running.http_config.port if running is not None else free_port()
    started = deploy(served_run, ("ensemble",), ServeSettings(port=port, together=True))
    try:
        assert list(serve.status().applications) == ["ensemw2s"]
        assert list(serve.status().applications["ensemw2s"].deployments) == ["vote"]
        body = {**BODY, "max_tokens": 20}
        answer = post(f"http://127.0.0.1:{port}", "/v1/completions", body)
        assert answer.headers["x-ensemw2s-members"] == "2/2"
        assert answer.json()["choices"] == client.post("/v1/completions", body).json()["choices"]
    finally:
        undeploy(started)


def test_the_configuration_file_is_one(served_run: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from ensemw2s.serving.deployments import Arguments, build

    content = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(content).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    arguments = Arguments.model_validate(application.args)
    assert arguments.settings.api_keys is not None
