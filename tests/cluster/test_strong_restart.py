"""A DeepSpeed worker that dies in the middle: Ray Train starts it again from its checkpoint, with the same result."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ensemw2s import api
from ensemw2s.cluster.strong import train_with_deepspeed
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.encoded import EncodedSplits
from ensemw2s.engine.prepare import begin_run, check_directory, prepare
from ensemw2s.engine.tasks import ProgressEvent, StudentTask

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
MakeConfig = Callable[..., dict[str, Any]]


class Notes:
    """Stands where the coordinator receives progress; counts the second student's steps, and keeps what happened."""

    def __init__(self) -> None:
        self._done = 0
        self._events: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: ProgressEvent) -> None:
        if event.task == "student on_easy":
            self._done = max(self._done, event.done)

    def done(self) -> int:
        return self._done

    def happened(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.append((kind, fields))

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return self._events


def train(make_tiny: MakeConfig, folder: Path, *, kill_at: int | None) -> tuple[Any, ...]:
    import ray

    from ensemw2s.models.loading import load_tokenizer

    config = api.as_config(
        ExperimentConfig.model_validate(
            make_tiny(
                folder,
                strong__training__epochs=6,
                strong__training__deepspeed="zero2",
                runtime={
                    "executor": "ray",
                    "device": "cpu",
                    "threads": 1,
                    "strong_workers": 2,
                    "checkpoint_steps": 25,
                },
            )
        )
    )
    store = check_directory(config)
    prepared = prepare(config)
    begin_run(prepared, store, 0)
    splits = EncodedSplits(store.folder, config.data, load_tokenizer(config.strong.model))
    tasks = [
        StudentTask(
            name,
            split,
            tuple(sample.answer for sample in splits[split].samples),
            5,
            store.begin(name) / "students" / name,
            store.scratch(name),
        )
        for name, split in (("ceiling", "hard_train"), ("on_easy", "easy_train"))
    ]
    notes = ray.remote(Notes).options(num_cpus=0).remote()
    killed = threading.Event()

    def kill() -> None:
        while not killed.is_set():
            if ray.get(notes.done.remote()) >= (kill_at or 0):
                # Of this Ray: others may run on the machine.
                workers = [
                    p
                    for p in psutil.Process().children(recursive=True)
                    if "RayTrainWorker" in " ".join(p.cmdline())
                ]
                if workers:
                    workers[0].send_signal(signal.SIGKILL)
                    killed.set()
            time.sleep(0.2)

    if kill_at is not None:
        threading.Thread(target=kill, daemon=True).start()
    outcomes = list(train_with_deepspeed(config, store.folder, tasks, store.scratch("both"), 1, notes))
    was_killed = killed.is_set()
    killed.set()
    weights = [(task.output / "model.safetensors").read_bytes() for task in tasks]
    return outcomes, weights, was_killed, ray.get(notes.events.remote())


def test_a_killed_worker_resumes_to_the_same_weights(
    ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path
) -> None:
    """Killed while the group trains its second student. Bit for bit: float32, one thread a worker, the same workers."""
    undisturbed, weights, _, nothing = train(make_tiny, tmp_path / "undisturbed", kill_at=None)
    disturbed, other, was_killed, events = train(make_tiny, tmp_path / "disturbed", kill_at=30)
    assert was_killed
    assert nothing == []
    assert [kind for kind, _ in events] == ["strong_workers_failed"]
    assert events[0][1]["ranks"] in ([0], [1], [0, 1])
    assert all(o.steps > 30 for o in undisturbed)
    assert [o.losses for o in undisturbed] == [o.losses for o in disturbed]
    assert weights == other
    assert weights[0] != weights[1]
