"""The second stage on Ray Train workers: the student that one process trains, also where a worker dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ensemw2s import api
from ensemw2s.cluster.strong import train_with_deepspeed
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.prepare import begin_run, check_directory, prepare
from ensemw2s.engine.supervisor import WeakSupervisor
from ensemw2s.engine.tasks import ModelRef, Pair, ProgressEvent, StudentTask
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.storage import save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MakeConfig = Callable[..., dict[str, Any]]
KILLED_AT = 12


class Killer:
    """Stands where the coordinator receives progress: keeps what happened and, if it is to, kills a worker once."""

    def __init__(self, kills: bool) -> None:
        self._killed = not kills
        self._events: list[str] = []

    def note(self, event: ProgressEvent) -> None:
        if event.done >= KILLED_AT and not self._killed:
            self._killed = True
            # Of this Ray: others may run on the machine.
            raylet = psutil.Process().parent()
            found = [] if raylet is None else raylet.children(recursive=True)
            workers = [p for p in found if "RayTrainWorker" in " ".join(p.cmdline())]
            workers[0].kill()

    def happened(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.append(kind)

    def events(self) -> list[str]:
        return self._events


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_train_what_one_process_does(
    ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path, workers: int
) -> None:
    """A batch of 8 pairs; on two workers, one of which dies, 2 x 2 x 2: sums run in another order there."""
    import ray

    config = api.as_config(
        ExperimentConfig.model_validate(
            make_tiny(
                tmp_path,
                labels__keep_by="agreement",
                strong__preference={"learning_rate": 1e-3, "epochs": 4},
                strong__training__micro_batch_size=2,
                runtime={"device": "cpu", "threads": 1, "strong_workers": workers, "checkpoint_steps": 5},
            )
        )
    )
    store = check_directory(config)
    begin_run(prepare(config), store, 0)
    base = config.strong.model
    first = tmp_path / "first"
    save_model(load_model(base, device="cpu"), load_tokenizer(base), first, base=base)
    pairs = tuple(Pair(row, row % 4, (row + 1) % 4) for row in range(40))
    here, there = (
        StudentTask(
            "preference",
            "hard_train",
            (),
            5,
            store.begin(name) / "students" / name,
            store.scratch(name),
            start=ModelRef("strong", 0, first),
            pairs=pairs,
        )
        for name in ("here", "there")
    )
    supervisor = WeakSupervisor(config, store.folder, threads=1, report=lambda event: None)
    expected = supervisor.train_student(here)
    killer = ray.remote(Killer).options(num_cpus=0).remote(workers > 1)
    (outcome,) = train_with_deepspeed(config, store.folder, [there], store.scratch("group"), 1, killer)
    assert ray.get(killer.events.remote()) == (["strong_workers_failed"] if workers > 1 else [])
    assert outcome.steps == expected.steps == 20
    assert (outcome.tokens, outcome.flops) == (expected.tokens, expected.flops)
    assert outcome.losses == pytest.approx(expected.losses, abs=2e-4)
    weights, others = (load_file(task.output / "model.safetensors") for task in (here, there))
    start = load_file(first / "model.safetensors")
    close = 1e-4 if workers > 1 else 0.0
    assert all(torch.allclose(weights[n], others[n], atol=close, rtol=0.0) for n in weights)
    assert max(float((weights[n] - start[n]).abs().max()) for n in weights) > 3e-3
