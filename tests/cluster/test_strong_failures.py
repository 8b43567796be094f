"""What follows when Ray Train's controller dies; no cluster."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ensemw2s.cluster import strong
from ensemw2s.engine.tasks import StudentTask
from ensemw2s.errors import WorkerFailure

DONE = {"seconds": 1.0, "tokens": 9, "flops": 1.0, "device": "cpu", "steps": 1}


@pytest.mark.parametrize("max_failures", [0, 2])
def test_a_controller_that_dies_is_started_again(tmp_path: Path, max_failures: int) -> None:
    """With the students that are not finished, as often as runtime.max_failures says."""
    tasks = [
        StudentTask(name, "hard_train", (0,), 5, tmp_path / "out" / name, tmp_path / "scratch" / name)
        for name in ("ceiling", "single")
    ]
    asked: list[list[str]] = []

    def fit(unfinished: list[StudentTask]) -> None:
        asked.append([task.name for task in unfinished])
        folder = strong.finished_folder(unfinished[0])
        folder.mkdir(parents=True)
        (folder / strong.OUTCOME).write_text(json.dumps(DONE))
        raise ray.exceptions.ActorDiedError()

    happened: list[tuple[str, dict[str, Any]]] = []
    coordinator = SimpleNamespace(happened=SimpleNamespace(remote=lambda *what: happened.append(what)))

    def train() -> None:
        strong._fit_again(fit, tasks, None, max_failures, coordinator)

    if max_failures == 0:
        with pytest.raises(
            WorkerFailure, match=r"\(ceiling, single\) failed: .*; run the same command to continue"
        ):
            train()
        assert (asked, happened) == ([["ceiling", "single"]], [])
    else:
        train()
        assert asked == [["ceiling", "single"], ["single"]]
        assert happened == [("train_controller_restarted", {"restarts": n}) for n in (1, 2)]
