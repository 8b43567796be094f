"""The second stage of the ensemble's student: which pairs it learns from, and the whole run with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.answers import Answers
from ensemw2s.engine.lost import DERIVED
from ensemw2s.engine.pool import LocalExecutor
from ensemw2s.engine.preferences import pairs_of
from ensemw2s.engine.results import comparable
from ensemw2s.engine.tasks import Pair, ProgressEvent, StudentTask
from ensemw2s.errors import ConfigError
from ensemw2s.runs import remote_lock
from ensemw2s.serving.opening import open_run
from tests.s3_server import S3

MakeConfig = Callable[..., dict[str, Any]]

SECOND = {
    "labels__keep_by": "agreement",
    "labels__keep": 0.5,
    "vote__rounds": "all",
    "strong__preference": {"least_confidence": 0.3, "learning_rate": 1e-3},
}


def test_pairs_are_made_where_the_student_is_sure() -> None:
    """Four questions of two, three, three and two choices."""
    shares = np.array([0.9, 0.1, 0.2, 0.7, 0.1, 0.15, 0.6, 0.25, 0.45, 0.55])
    own = Answers((0, 1, 1, 1), np.array([0.9, 0.7, 0.6, 0.55]), shares)
    labels, offsets = [0, 2, 1, 0], np.array([0, 2, 5, 8, 10])
    everything = np.ones(4, dtype=bool)
    assert pairs_of(own, labels, everything, offsets, 0.6) == (
        # The label is what the student says: its second choice is the other one.
        Pair(0, 0, 1),
        # The label is another one.
        Pair(1, 1, 2),
        Pair(2, 1, 2),
    )
    assert pairs_of(own, labels, np.array([False, False, False, True]), offsets, 0.0) == (Pair(3, 1, 0),)
    assert pairs_of(own, labels, ~everything, offsets, 0.0) == ()


def run(config: dict[str, Any]) -> Path:
    return Path(api.run(ExperimentConfig.model_validate(config)).run_dir)


def test_a_run_has_a_second_stage(
    make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its student is another one, is compared with the first, and is found in the cache by the next run."""
    tasks: list[StudentTask] = []
    train = LocalExecutor.train_students

    def noting(self: LocalExecutor, given: list[StudentTask], scratch: Path) -> Any:
        tasks.extend(given)
        return train(self, given, scratch)

    monkeypatch.setattr(LocalExecutor, "train_students", noting)
    changes = {**SECOND, "runtime__cache": str(tmp_path / "cache")}
    folder = run(make_tiny(tmp_path, **changes))
    results = json.loads((folder / "results.json").read_text())
    labels = pq.read_table(folder / "labels" / "ensemble.parquet").to_pylist()
    manifest = json.loads((folder / "manifest.json").read_text())["stages"]
    info = manifest["student-preference"]["info"]
    left_out = {i for i, row in enumerate(labels) if not row["taught"]}
    (second_stage,) = (task for task in tasks if task.pairs)
    assert {pair.row for pair in second_stage.pairs} <= left_out
    assert 0 < info["samples"] == len(second_stage.pairs)
    assert info["steps"] == -(-info["samples"] // 8)
    assert results["student_preference"]["test"]["n"] == results["student_ensemble"]["test"]["n"]
    assert [c for c in results["comparisons"]["test"] if c["a"] == "student_preference"]
    assert "preference" in results["pgr"]["test"]
    first, second = (
        (folder / "students" / name / "model.safetensors").read_bytes() for name in ("ensemble", "preference")
    )
    assert first != second
    assert "Student, second stage" in (folder / "report.html").read_text()

    # A member that is lost takes with it all that was made of this student, too.
    of_it = [name for name in manifest if "preference" in name]
    assert len(of_it) >= 3
    assert all(name.startswith(DERIVED) for name in of_it)

    # The endpoint serves the student that came out of it.
    (ref,) = open_run(folder, ("student",)).refs
    assert ref.folder == folder / "students" / "preference"

    monkeypatch.setattr("ensemw2s.runs.report.write_report", lambda run_dir: None)
    again = run(make_tiny(tmp_path, name="again", **changes))
    found = [json.loads(line) for line in (again / "events.jsonl").read_text().splitlines()]
    assert "student preference" in {e.get("work") for e in found if e["event"] == "found_in_cache"}
    assert (again / "students" / "preference" / "model.safetensors").read_bytes() == second


def test_a_student_that_is_sure_of_nothing_has_no_second_stage(
    make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing the report takes longer than all the rest.
    monkeypatch.setattr("ensemw2s.runs.report.write_report", lambda run_dir: None)
    config = make_tiny(tmp_path, **{**SECOND, "strong__preference": {"least_confidence": 0.999999}})
    folder = run(config)
    results = json.loads((folder / "results.json").read_text())
    assert results["student_preference"] == results["student_ensemble"]
    assert any("lower strong.preference.least_confidence" in text for text in results["warnings"])
    # A run that was killed before its results were there says so, too.
    manifest = json.loads((folder / "manifest.json").read_text())
    for stage in ("results", "report"):
        del manifest["stages"][stage]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run(config)
    assert json.loads((folder / "results.json").read_text())["warnings"] == results["warnings"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels__keep_by": "all"}, "set labels.keep_by agreement or confidence"),
        (
            {"runtime__executor": "ray", "runtime__strong_workers": 3},
            r"batch_size 8 cannot be divided by runtime.strong_workers 3",
        ),
        (
            {
                "strong__model__head": "classifier",
                "weak__models": [{"path": "x", "head": "classifier"}],
                "boosting__prior": "classes",
            },
            "use head lm",
        ),
    ],
)
def test_what_does_not_go_with_it(
    make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentConfig.model_validate(make_tiny(tmp_path, **{**SECOND, **changes}))


def test_free_answers_have_no_choices_to_compare(
    make_tiny: MakeConfig, free_questions: Path, tmp_path: Path
) -> None:
    changes = {
        **SECOND,
        "labels__keep_by": "confidence",
        "data__pool": {"kind": "file", "path": str(free_questions)},
    }
    with pytest.raises(ConfigError, match="this data has none"):
        run(make_tiny(tmp_path, **changes))


def test_a_second_stage_goes_on_from_a_bucket_on_another_machine(
    s3: S3, make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before it; the machine that goes on has nothing of the first one's disk."""
    expected = json.loads((run(make_tiny(tmp_path, **SECOND)) / "results.json").read_text())
    monkeypatch.setattr(remote_lock, "LEASE_SECONDS", 2.0)
    config = {**make_tiny(tmp_path, **SECOND), "runs_dir": s3.uri(f"{s3.bucket()}/runs")}

    def on(machine: str) -> ExperimentConfig:
        runtime = {**config["runtime"], "work_dir": str(tmp_path / machine)}
        return ExperimentConfig.model_validate({**config, "runtime": runtime})

    def interrupt(event: ProgressEvent) -> None:
        if event.task == "committed student-ensemble":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(on("first"), progress=interrupt)
    shutil.rmtree(tmp_path / "first")
    assert comparable(api.run(on("second")).results) == comparable(expected)
