"""A whole run on an S3 server, without Ray: the same results as in a folder, continued on another machine, used by its URI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemw2s import api, cli
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.results import comparable
from ensemw2s.errors import ConfigError
from ensemw2s.runs import remote_lock
from ensemw2s.runs.mirror import WORK_DIR
from ensemw2s.settings import absolute_paths
from tests.s3_server import S3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MakeConfig = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "weak__training__learning_rate": 2e-2,
    "strong__training__epochs": 1,
    "boosting": {"rounds": 2, "prior": "unigram", "max_weight": 20.0},
}


def run(config: dict[str, Any]) -> api.RunResult:
    return api.run(ExperimentConfig.model_validate(config))


@pytest.fixture(scope="module")
def in_a_folder(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return comparable(run(make_tiny(tmp_path_factory.mktemp("folder"), **SETTINGS)).results)


@pytest.fixture(scope="module")
def killed(s3: S3, make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a run that was killed on one machine; its disk is gone."""
    folder = tmp_path_factory.mktemp("killed")
    config = make_tiny(
        folder, **SETTINGS, runtime__work_dir=str(folder / "first"), runtime__checkpoint_steps=4
    )
    config["runs_dir"] = s3.uri(f"{s3.bucket()}/runs")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "ensemw2s.cli", "run", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if "committed member-00" in line:
                process.kill()
    assert process.returncode == -signal.SIGKILL, seen
    return config


@pytest.fixture(scope="module")
def continued(killed: dict[str, Any]) -> api.RunResult:
    config = {
        **killed,
        "runtime": {**killed["runtime"], "work_dir": killed["runtime"]["work_dir"] + "-second"},
    }
    with pytest.MonkeyPatch.context() as patch:
        # The lock of the one that was killed.
        patch.setattr(remote_lock, "LEASE_SECONDS", 2.0)
        return run(config)


def test_a_run_that_was_killed_goes_on_elsewhere_to_the_same_results(
    in_a_folder: dict[str, Any], killed: dict[str, Any], continued: api.RunResult, s3: S3
) -> None:
    assert comparable(continued.results) == in_a_folder
    assert continued.ran
    bucket = killed["runs_dir"].removeprefix("s3://").partition("/")[0]
    assert continued.place == f"s3://{bucket}/runs/tiny"
    run_dir = s3.data / bucket / "runs" / "tiny"
    assert json.loads((run_dir / "results.json").read_text()) == json.loads(json.dumps(continued.results))
    for name in (
        "report.html",
        "report.md",
        "config.yaml",
        "figures/members.png",
        "members/01/model.safetensors",
    ):
        assert (run_dir / name).is_file(), name
    # Locks, checkpoints and lists of what was handed over are gone.
    assert not [
        p
        for p in run_dir.rglob("*")
        if p.is_file() and p.relative_to(run_dir).parts[0].startswith((".", "run.lock"))
    ]
    events = [json.loads(line)["event"] for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert events == ["continued"]


def test_a_finished_run_does_nothing_on_a_third_machine(
    killed: dict[str, Any], continued: api.RunResult, tmp_path: Path
) -> None:
    again = run({**killed, "runtime": {**killed["runtime"], "work_dir": str(tmp_path)}})
    assert not again.ran
    assert again.results == json.loads(json.dumps(continued.results))
    assert not (again.run_dir / "members").exists()


def test_commands_take_the_uri_of_a_run(
    killed: dict[str, Any],
    continued: api.RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(WORK_DIR, str(tmp_path / "copies"))
    uri = killed["runs_dir"].replace("/runs?", "/runs/tiny?")
    assert cli.main(["status", uri]) == 0
    assert f"{continued.place}: finished" in capsys.readouterr().out
    questions = tmp_path / "new.jsonl"
    questions.write_text(
        json.dumps({"question": "the ant in the barn", "choices": ["buzz loud", "hiss low"]}) + "\n"
    )
    labels = {}
    for name, place in (("uri", uri), ("folder", str(continued.run_dir))):
        output = tmp_path / f"{name}.jsonl"
        assert cli.main(["label", place, "--input", str(questions), "--output", str(output)]) == 0
        labels[name] = output.read_text()
    assert labels["uri"] == labels["folder"]
    assert cli.main(["generate", uri, "--prompt", "the bee in the den", "--max-new-tokens", "2"]) == 0
    assert cli.main(["report", uri]) == 0
    assert f"the run itself: {continued.place}" in capsys.readouterr().out
    from ensemw2s.serving.opening import open_run

    assert set(open_run(uri).ensembles) == {"ensemble", "student"}
    assert api.read_results(uri) == json.loads(json.dumps(continued.results))


def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    s3: S3,
    make_tiny: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    continued: api.RunResult,
    killed: dict[str, Any],
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        yaml.safe_dump(make_tiny(tmp_path, **SETTINGS, runtime__work_dir=str(tmp_path / "copies")))
    )
    empty = s3.bucket()
    for uri, part in (
        (s3.uri("no-such-bucket/runs"), "there is no bucket 'no-such-bucket'"),
        ("nope://bucket/runs", "neither pyarrow nor fsspec knows nope://"),
        ("s3://", "names no bucket"),
        (s3.uri(f"{empty}/runs") + "&no_such_option=1", "no_such_option"),
    ):
        for command in (
            ["run", str(path), f"runs_dir={uri}"],
            ["run", str(path), f"runs_dir={uri}", "--dry-run"],
        ):
            assert cli.main(command) == 2, command
            captured = capsys.readouterr()
            assert captured.out == ""
            (line,) = captured.err.splitlines()
            assert part in line
    assert cli.main(["status", s3.uri(f"{empty}/runs/tiny")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    # Another run is there.
    assert cli.main(["run", str(path), f"runs_dir={killed['runs_dir']}", "seed=4"]) == 2
    assert f"{continued.place} holds a run of another configuration (seed: 3 -> 4)" in capsys.readouterr().err
    assert cli.main(["run", str(path), f"runs_dir={s3.uri(empty)}", "--dry-run"]) == 0
    assert f"run directory: s3://{empty}/tiny (nothing was written)" in capsys.readouterr().out
    assert list((s3.data / empty).iterdir()) == []
    copies = tmp_path / "copies"
    assert [p.name for p in tmp_path.iterdir() if p not in (path, copies)] == []


def test_a_cache_needs_a_folder(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = {**make_tiny(tmp_path, **SETTINGS, runtime__cache=str(tmp_path)), "runs_dir": "s3://bucket/runs"}
    with pytest.raises(
        ConfigError, match=r"runtime.cache is a folder beside run directories, and runs_dir is a URI"
    ):
        api.as_config(_file(tmp_path, config))


def test_a_uri_and_a_folder_of_the_node_stay_as_they_are(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = {**make_tiny(tmp_path, **SETTINGS), "runs_dir": "s3://bucket/runs?region=x"}
    for given, kept in (
        ("$DISK/copies", "$DISK/copies"),
        ("~/copies", "~/copies"),
        ("copies", str(Path("copies").absolute())),
    ):
        config["runtime"]["work_dir"] = given
        absolute = absolute_paths(ExperimentConfig.model_validate(config))
        assert (absolute.runs_dir, absolute.runtime.work_dir) == ("s3://bucket/runs?region=x", kept)


def _file(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path
