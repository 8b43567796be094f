"""Numbers for other tools: read back from the files that they write; a tool that fails does not end a run."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import api, cli
from ensemw2s.config import ExperimentConfig
from ensemw2s.doctor import software
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.engine.trackers import check_trackers
from ensemw2s.errors import ConfigError
from ensemw2s.tracking import TRACKERS, Tracked, result_numbers, tracked

MakeConfig = Callable[..., dict[str, Any]]


def events(folder: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of every scalar in TensorBoard's event files, which are TFRecord files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return found


def test_a_run_goes_to_tensorboard(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = make_tiny(
        tmp_path, boosting__rounds=1, weak__training__epochs=1, runtime__log_to=["tensorboard"]
    )
    shown: list[ProgressEvent] = []
    result = api.run(ExperimentConfig.model_validate(config), until="labels", progress=shown.append)
    found = events(result.run_dir / "tracking" / "tensorboard")
    losses = [(step, value) for name, step, value in found if name == "round_1_of_1_training/loss"]
    told = [(e.done, e.metrics["loss"]) for e in shown if "loss" in e.metrics]
    assert [step for step, _ in losses] == list(range(1, 9))
    assert [value for _, value in losses] == pytest.approx([value for _, value in told])
    (accuracy,) = [e.metrics["easy_val_accuracy"] for e in shown if "easy_val_accuracy" in e.metrics]
    assert ("rounds/easy_val_accuracy", 1, pytest.approx(accuracy)) in found
    # It is runtime: the same run goes on with and without it.
    config["runtime"]["log_to"] = []
    assert not api.run(ExperimentConfig.model_validate(config), until="labels").ran


RESULTS = {
    "name": "x",
    "splits": {"test": {"n": 5}},
    "ceiling": {"test": {"value": 0.75, "low": 0.7, "high": 0.8, "n": 5}, "harder": None},
    "student_single": None,
    "pgr": {"test": {"single": None, "ensemble": {"value": 0.5, "low": None, "high": 1.0}}},
}


def test_results_by_name() -> None:
    assert result_numbers(RESULTS) == {"ceiling/test": 0.75, "pgr_ensemble/test": 0.5}


def test_a_tracker_that_fails_is_named_once_and_left_out() -> None:
    class Broken:
        def scalars(self, values: Any, step: int) -> None:
            raise OSError("no route to host")

        def close(self) -> None:
            raise AssertionError("closed after it was left out")

    class Working:
        seen: list[Any] = []

        def scalars(self, values: Any, step: int) -> None:
            self.seen.append((dict(values), step))

        def close(self) -> None:
            self.seen.append("closed")

    shown: list[ProgressEvent] = []
    both = Tracked({"wandb": Broken(), "mlflow": Working()}, shown.append)
    for done in (1, 2):
        both(ProgressEvent("a: b", done, 2, metrics={"loss": 0.5}))
    both.close()
    warnings = [e.task for e in shown if e.task.startswith("warning")]
    assert warnings == ["warning: wandb failed and is left out from here on: no route to host"]
    assert Working.seen == [({"a_b/loss": 0.5}, 1), ({"a_b/loss": 0.5}, 2), "closed"]


def config_with(make_tiny: MakeConfig, folder: Path, name: str) -> ExperimentConfig:
    return ExperimentConfig.model_validate(make_tiny(folder, runtime__log_to=[name]))


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemw2s.engine.trackers.INSTALL", {"wandb": ("no_such_package", "wandb")})


def test_what_is_not_installed_is_refused(make_tiny: MakeConfig, tmp_path: Path, no_wandb: None) -> None:
    with pytest.raises(ConfigError, match="no_such_package is not installed: pip install"):
        api.run(config_with(make_tiny, tmp_path, "wandb"))
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_and_the_doctor_say_it_too(
    make_tiny: MakeConfig, tmp_path: Path, no_wandb: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tiny(tmp_path)))
    override = "runtime.log_to=[wandb]"
    assert cli.main(["run", str(path), "--dry-run", override]) == 2
    captured = capsys.readouterr()
    missing, remedy = (
        "the package no_such_package is not installed",
        "pip install 'ensemw2s[wandb]', or leave it out",
    )
    assert captured.out == ""
    assert captured.err == f"error: runtime.log_to wandb: {missing}: {remedy}\n"
    assert cli.main(["doctor", str(path), override]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"bad wandb runtime.log_to: {missing} -> {remedy}" in shown
    assert not (tmp_path / "runs").exists()


def test_the_doctor_finds_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemw2s.engine.trackers.INSTALL", {name: ("json", name) for name in TRACKERS})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    status = {check.name: check.status for check in software.check_trackers(list(TRACKERS))}
    assert status == {"tensorboard": "ok", "wandb": "ok", "mlflow": "bad"}


def test_mlflow_needs_an_address_and_a_run_goes_on_there(
    make_tiny: MakeConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("mlflow")
    config = config_with(make_tiny, tmp_path, "mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        check_trackers(config)
    # MLflow's client alone can write to files, if asked to.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    check_trackers(config)
    for step in (1, 2):
        with tracked(config, tmp_path, lambda event: None) as watched:
            watched(ProgressEvent("training", step, 2, metrics={"loss": 1.0 / step}))
            watched.results(RESULTS)
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("ensemw2s").experiment_id])
    history = client.get_metric_history(run.info.run_id, "training/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics["ceiling/test"] == 0.75
    assert run.info.status == "FINISHED"


def test_wandb_offline(make_tiny: MakeConfig, tmp_path: Path, monkeypatch: Any) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    shown: list[ProgressEvent] = []
    with tracked(config_with(make_tiny, tmp_path, "wandb"), tmp_path, shown.append) as watched:
        watched(ProgressEvent("training", 1, 2, metrics={"loss": 0.5}))
    assert [event.task for event in shown] == ["training"]
    # Its service writes behind our back, as at the end of every process.
    wandb.teardown()
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"training/loss" in written.read_bytes()
