"""The jobs as plain Python: exit codes, single lines for errors, and each its part of one run."""

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

from ensemw2s import console, jobs
from ensemw2s.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "ray_jobs").glob("*.py"))
MINE = ("boost", "label", "pipeline", "train_strong")
MakeConfig = Callable[..., dict[str, Any]]
Result = tuple[int, str, str]


@pytest.fixture
def config_file(make_tiny: MakeConfig, tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    settings = {"boosting__prior": "unigram", "weak__training__learning_rate": 2e-2, "vote__rounds": "all"}
    path.write_text(yaml.safe_dump(make_tiny(tmp_path, **settings)), encoding="utf-8")
    return path


@pytest.fixture
def job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a job file as a script in this process."""

    def run(name: str, *arguments: str | Path) -> Result:
        import runpy

        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "ray_jobs" / f"{name}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_a_job_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("name", MINE)
def test_help_names_the_command(name: str, job: Any) -> None:
    code, out, _ = job(name, "--help")
    assert code == 0
    assert f"ray job submit --working-dir . -- python ray_jobs/{name}.py --" in out
    assert "boosting.rounds=4" in out


@pytest.mark.parametrize("name", ["boost", "train_strong", "pipeline"])
def test_bad_input_is_one_line(name: str, job: Any, config_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for arguments, part in (
        (["--config", tmp_path / "none.yaml"], "none.yaml"),
        (["--config", config_file, "boosting.rounds=0"], "boosting.rounds"),
        (["--config", config_file, "runs_dir=s3://"], "runs_dir: 's3://' names no bucket"),
        (["--config", config_file, "--seed"], "seed"),
        (["--config", config_file, "--gpus", "1"], "runtime.executor=local uses none"),
    ):
        if name == "train_strong" and part.startswith("runtime"):
            part = "is not boosted yet: run ray_jobs/boost.py"
        code, out, err = job(name, *arguments)
        assert (code, out) == (2, ""), arguments
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert part in line
    assert sorted(tmp_path.rglob("*")) == before


def test_gpus_are_waited_for_where_they_can_come(
    job: Any, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    _, _, err = job(
        "boost", "--config", config_file, "--gpus", "1", "runtime.executor=ray", "runtime.device=auto"
    )
    assert "set runtime.ray_address or RAY_ADDRESS" in err
    _, _, err = job("boost", "--config", config_file, "--gpus", "1", "runtime.executor=ray")
    assert "runtime.device=cpu uses none" in err
    _, _, err = job("boost", "--config", config_file, "--gpus", "0")
    assert "--gpus 0 is not allowed" in err


def test_what_a_job_would_lose_is_refused(
    job: Any, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A job's working directory is such a copy.
    copy = tmp_path / "runtime_resources" / jobs.JOB_COPY / "_ray_pkg_0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    code, _, err = job("pipeline", "--config", config_file, "runs_dir=runs")
    assert code == 2
    assert "runs_dir 'runs' lies in the job's copy of the working directory" in err
    code, _, err = job("label", "--config", config_file, "--input", "x.jsonl", "--output", "labels.jsonl")
    assert code == 2
    assert "--output 'labels.jsonl' lies in the job's copy" in err
    assert list(copy.iterdir()) == []


def test_boost_then_label_then_train(job: Any, config_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "tiny"
    new = tmp_path / "new.jsonl"
    new.write_text('{"question": "the cat in the sea", "choices": ["hiss low", "buzz loud"]}\n')
    code, _, err = job("label", "--config", config_file, "--input", new, "--output", tmp_path / "early.csv")
    assert (code, "is not boosted yet" in err) == (2, True)

    code, out, err = job("boost", "--config", config_file)
    assert code == 0
    assert "committed labels-ensemble" in err
    assert "members   2 of 2" in out
    assert out.endswith(f"pseudo-labels: {run_dir / 'labels' / 'ensemble.parquet'}\n")
    stages = set(json.loads((run_dir / "manifest.json").read_text())["stages"])
    assert not {s for s in stages if s.startswith("student") or s == "results"}

    code, _, err = job("train_strong", "--config", config_file, "--seed", "4")
    assert (code, "holds a run of another configuration (seed: 3 -> 4)" in err) == (2, True)

    by_config, by_run = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert job("label", "--config", config_file, "--input", new, "--output", by_config)[0] == 0
    assert (
        job("label", "--run", run_dir, "--input", new, "--output", by_run, "runtime.batch_tokens=64")[0] == 0
    )
    assert by_config.read_text() == by_run.read_text() != ""
    code, _, err = job("label", "--run", run_dir, "--input", new, "--output", by_run, "vote.rounds=1")
    assert (code, "override runtime.* only" in err) == (2, True)

    members = (run_dir / "members").stat().st_mtime_ns
    code, out, _ = job("train_strong", "--config", config_file)
    assert code == 0
    assert "Student of the ensemble" in out
    assert f"report: {run_dir / 'report.html'}" in out
    assert (run_dir / "members").stat().st_mtime_ns == members
    code, out, err = job("pipeline", "--config", config_file)
    assert (code, "is finished: nothing to do" in err, "Student of the ensemble" in out) == (0, True, True)
    # A boosted run is shown again, whatever has come since.
    assert job("boost", "--config", config_file)[0] == 0


def test_labels_on_ray_are_those_of_one_process(
    ray_cluster: None, job: Any, config_file: Path, tmp_path: Path
) -> None:
    assert job("boost", "--config", config_file)[0] == 0
    new = tmp_path / "new.jsonl"
    rows = [
        {"question": f"the {a} in the sea", "choices": ["hiss low", "buzz loud"]}
        for a in ("cat", "bee", "dog")
    ]
    new.write_text("".join(json.dumps(r) + "\n" for r in rows))
    outputs = {}
    for name, extra in (("local", []), ("ray", ["runtime.executor=ray", "runtime.supervisors=2"])):
        output = tmp_path / f"{name}.jsonl"
        code, out, err = job("label", "--config", config_file, "--input", new, "--output", output, *extra)
        assert code == 0, err
        assert out == f"3 labels by 2 members: {output}\n"
        assert "new questions 3/3" in err
        outputs[name] = output.read_text()
    assert outputs["ray"] == outputs["local"]


class TestExitCodes:
    def test_of_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fail(error: BaseException) -> Callable[[], int]:
            def action() -> int:
                raise error

            return action

        assert console.exit_code(lambda: 0) == 0
        assert console.exit_code(fail(ConfigError(["first", "second"]))) == 2
        assert console.exit_code(fail(ArtifactError("damaged"))) == 1
        assert console.exit_code(fail(KeyboardInterrupt())) == 130
        assert console.exit_code(fail(SystemExit(signal.SIGTERM))) == 130
        lines = capsys.readouterr().err.splitlines()
        assert lines[:3] == ["error: first", "error: second", "error: damaged"]
        assert all(line.startswith("interrupted: ") for line in lines[3:])
        with pytest.raises(SystemExit, match="2"):
            console.exit_code(fail(SystemExit(2)))
        with pytest.raises(ZeroDivisionError):
            console.exit_code(lambda: 1 // 0)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_of_a_signal(self, number: signal.Signals) -> None:
        code = (
            "import sys, time; from ensemw2s.console import exit_code\n"
            "def wait():\n    print('ready', flush=True)\n    time.sleep(60)\n    return 0\n"
            "sys.exit(exit_code(wait))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.kill(process.pid, number)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err == "interrupted: what was committed is kept; the same command continues\n"


def test_the_sigterm_handler_outlives_ray_init(
    make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts one of its own in place, which would end the process before anything is cleaned up."""
    from ensemw2s.cluster.runner import ray_session
    from ensemw2s.config import ExperimentConfig

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)

    def mine(*_: Any) -> None:
        pass

    signal.signal(signal.SIGTERM, mine)
    try:
        with ray_session(ExperimentConfig.model_validate(make_tiny(tmp_path, runtime__executor="ray"))):
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
