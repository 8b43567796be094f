"""Processes of a run that die, on a real Ray: it ends with the numbers of an undisturbed one, or says who is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.results import comparable
from ensemw2s.engine.tasks import ModelRef, ProgressEvent
from ensemw2s.errors import ConfigError, WorkerFailure
from ensemw2s.runs.status import read_status
from ensemw2s.runs.store import RunStore
from tests.cluster.faulty import write_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MakeConfig = Callable[..., dict[str, Any]]
CHECKPOINT_STEPS = 4
ON_RAY = {
    "executor": "ray",
    "device": "cpu",
    "threads": 1,
    "supervisors": 1,
    "gpus_per_supervisor": 1.0,
    "checkpoint_steps": CHECKPOINT_STEPS,
}


class Runs:
    """Runs of one experiment, whose answers are generated; each has a plan of deaths (see `faulty`)."""

    def __init__(self, make_tiny: MakeConfig, questions: Path, folder: Path) -> None:
        self._make, self._questions, self._folder = make_tiny, questions, folder

    def plan(self, name: str) -> Path:
        return self._folder / name / "plan"

    def run_dir(self, name: str) -> Path:
        return self._folder / name / "runs" / "tiny"

    def config(self, name: str, **runtime: Any) -> ExperimentConfig:
        config = self._make(
            self._folder / name,
            data__pool={"kind": "file", "path": str(self._questions)},
            weak__training__loss="tests.cluster.faulty:loss",
            weak__training__loss_options={"plan": str(self.plan(name))},
            weak__training__learning_rate=2e-2,
            strong__training__epochs=1,
            boosting={"rounds": 2, "prior": "unigram", "max_weight": 20.0},
            vote={"max_new_tokens": 4, "top_k": 8, "rounds": "all"},
            runtime={"executor": "local", "device": "cpu", "threads": 1, **runtime},
        )
        return ExperimentConfig.model_validate(config)

    def on_ray(self, name: str, progress: Any = lambda event: None, **runtime: Any) -> list[dict[str, Any]]:
        """Boost on Ray; what events.jsonl says."""
        result = api.run(self.config(name, **{**ON_RAY, **runtime}), progress=progress, until="labels")
        return events(result.run_dir)

    def results(self, name: str) -> dict[str, Any]:
        """Run, or finish, in this process."""
        return comparable(api.run(self.config(name)).results)


def events(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


@pytest.fixture(scope="module")
def runs(make_tiny: MakeConfig, free_questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_tiny, free_questions, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> dict[str, Any]:
    write_plan(runs.plan("undisturbed"))
    return runs.results("undisturbed")


def test_members_die_at_work(ray_cluster: None, runs: Runs, undisturbed: dict[str, Any]) -> None:
    """In decoding, in training and in scoring, by SIGKILL: the run goes on, from what is committed or from a checkpoint, to
    the same results bit for bit (float32, one thread)."""
    write_plan(
        runs.plan("deaths"),
        {"doing": "decoding", "member": "00", "call": 3},
        {"doing": "training", "member": "", "call": 21},
        {"doing": "scoring", "member": "01", "call": 2},
    )
    seen = runs.on_ray("deaths", max_failures=3)
    assert list(runs.plan("deaths").glob("death-*")) == []
    common = {"event": "worker_restarted", "worker": 0, "failure": "actor_died"}
    assert seen == [
        {**common, "doing": "decoding", "restarts": 1, "member": 0},
        {**common, "doing": "training", "restarts": 2, "member": 1},
        {**common, "doing": "scoring", "restarts": 3, "member": 1},
    ]
    assert runs.results("deaths") == undisturbed
    # Two micro-batches a step. It died in the 11th step, and went on after the 8th: two steps and a half were made twice.
    once, twice = ((runs.plan(name) / "calls").stat().st_size for name in ("undisturbed", "deaths"))
    assert twice - once == 2 * 2 + 1


def test_two_supervisors_train_a_member_together_and_one_dies(
    ray_cluster: None, runs: Runs, undisturbed: dict[str, Any]
) -> None:
    """Each reads half of every batch; the losses are the serial ones. Both begin again from the checkpoint when one is lost."""
    write_plan(runs.plan("together"), {"doing": "training", "member": "", "call": 13})
    seen = runs.on_ray("together", supervisors=2, member_workers=2)
    assert [e["event"] for e in seen] == ["worker_restarted", "group_lost"]
    assert seen[1] == {"event": "group_lost", "doing": "training", "restarts": 1}
    together, alone = (RunStore(runs.run_dir(name)) for name in ("together", "undisturbed"))
    for name in ("member-00", "member-01"):
        one, other = (store.require(name).info for store in (together, alone))
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3)
        assert one["losses"][0] == pytest.approx(other["losses"][0], rel=1e-6)
        assert one["record"]["train_tokens"] == other["record"]["train_tokens"]
        assert one["cost"]["device"].startswith("2 x ")
    results = runs.results("together")
    assert results["weak_ensemble"] == undisturbed["weak_ensemble"]


def test_a_member_that_keeps_dying_stops_the_run_or_is_dropped_by_quorum(
    ray_cluster: None, runs: Runs, undisturbed: dict[str, Any]
) -> None:
    """Lost in training: the run is that of one round less."""
    death = {"doing": "training", "member": "", "call": 7}
    write_plan(runs.plan("dropped"), {**death, "member": "01"}, death)
    with pytest.raises(
        WorkerFailure,
        match=r"died more often than runtime.max_failures 0 allows \(its process died\); run the",
    ):
        runs.on_ray("dropped", max_failures=0)
    run_dir = runs.run_dir("dropped")
    assert read_status(run_dir).next == "train a member for round 2 of 2"

    seen = runs.on_ray("dropped", max_failures=0, quorum=1)
    lost = {
        "attempt": 1,
        "round": 2,
        "doing": "training",
        "reason": "its process died, 1 times",
        "trained": False,
    }
    assert [e["event"] for e in seen] == ["continued", "worker_restarted", "member_lost"]
    assert seen[2] == {"event": "member_lost", **lost}
    assert read_status(run_dir).next == "train the strong model: ceiling"
    results = runs.results("dropped")
    assert results["lost_members"] == [lost]
    assert any("was left out" in warning for warning in results["warnings"])
    assert undisturbed["lost_members"] == []
    assert results["members"] == undisturbed["members"][:1]
    for system in ("weak_single", "student_single", "ceiling", "strong_on_easy"):
        assert results[system] == undisturbed[system]
    assert results["weak_ensemble"] == results["weak_single"]
    assert results["student_ensemble"] == results["student_single"]


def test_a_member_that_is_lost_in_decoding_votes_nowhere(ray_cluster: None, runs: Runs) -> None:
    """Its round stays; what was made with its vote is made again by the other."""
    write_plan(runs.plan("voteless"), {"doing": "decoding", "member": "01", "call": 2})
    seen = runs.on_ray("voteless", max_failures=0, quorum=1)
    assert [(e["event"], e.get("doing"), e.get("trained")) for e in seen] == [
        ("worker_restarted", "decoding", None),
        ("member_lost", "decoding", True),
    ]
    run_dir = runs.run_dir("voteless")
    stages = RunStore(run_dir).stages()
    assert {"member-00", "member-01", "lost-01"} <= set(stages)
    assert stages["select"].info["selected"] == 1
    single, ensemble = (
        pq.read_table(run_dir / "labels" / f"{name}.parquet") for name in ("single", "ensemble")
    )
    assert single.equals(ensemble)


def test_without_room_for_a_dead_worker_another_one_does_its_work(
    ray_cluster: None, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from ensemw2s.cluster import pool as module
    from ensemw2s.cluster.placement import SupervisorPlan
    from ensemw2s.engine.prepare import begin_run, check_directory, prepare

    monkeypatch.setattr(module, "PLACE_SECONDS", 3.0)
    config = api.as_config(runs.config("move", **ON_RAY))
    write_plan(runs.plan("move"))
    store = check_directory(config)
    prepared = prepare(config)
    begin_run(prepared, store, 0)
    notes = ray.remote(Notes).options(num_cpus=0).remote()
    seen: list[tuple[str, dict[str, Any]]] = []
    with second_node() as node:
        pool = module.RayPool(
            prepared.absolute,
            store.folder,
            # One supervisor a node: three GPUs here, all of the other node.
            SupervisorPlan(2, 0.5, 3.0),
            1,
            notes,
            happened=lambda kind, **fields: seen.append((kind, fields)),
        )
        try:
            places = [pool.submit(slot, "device") for slot in range(2)]
            assert len({place.result() for place in places}) == 1
            kill_node(node)
            answers = [pool.submit(slot, "end_of_text", ModelRef("weak")) for slot in range(2)]
            assert answers[0].result() == answers[1].result()
        finally:
            pool.close()
    assert [kind for kind, _ in seen] == ["worker_restarted", "worker_moved"]
    lost = seen[0][1]["worker"]
    assert seen[0][1]["failure"] in LOST
    assert seen[1][1] == {"worker": lost, "to": 1 - lost}


class Notes:
    """Stands where the coordinator receives progress."""

    def note(self, event: ProgressEvent) -> None:
        pass


#: A worker may be missed before its node is.
LOST = ("node_died", "actor_died")


def kill_node(node: Any) -> int:
    """SIGKILL for a node's raylet and the processes that it started; the raylet's process id."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (raylet, *raylet.children(recursive=True)):
        process.kill()
    return raylet.pid


@contextmanager
def second_node() -> Iterator[Any]:
    """Another node of the tests' Ray, with three GPUs."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=False)
    # The head is there: the cluster of the whole session.
    cluster.head_node = ray._private.worker._global_node
    cluster.redis_address = cluster.head_node.redis_address
    node = cluster.add_node(num_cpus=2, num_gpus=3, node_ip_address="127.0.0.1")
    try:
        yield node
    finally:
        cluster.remove_node(node, allow_graceful=False)


def test_a_quorum_of_more_than_all_is_refused(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = make_tiny(tmp_path, boosting__rounds=2, runtime__quorum=3)
    with pytest.raises(ConfigError, match=r"runtime.quorum 3 is more than boosting.rounds 2"):
        api.as_config(_file(tmp_path, config))


def _file(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path
